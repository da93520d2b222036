"""The life of builds: accepted, made, cancelled, deleted, and begun again after a builder that died."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import duration_pb2, field_mask_pb2, timestamp_pb2

from noronha.builder import commands, folders, git, sources
from noronha.builder.backend import Backend, Job, Made, Tree
from noronha.builder.logs import Logs, Piece
from noronha.chassis import principals
from noronha.chassis.mount import Context
from noronha.chassis.principals import Kind, Principal
from noronha.rpc import names
from noronha.rpc.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NoronhaError,
    NotFound,
    Unavailable,
    Unimplemented,
    to_status,
)
from noronha.v1 import builder_pb2, metadata_pb2, records_pb2, store_pb2
from noronha.v1.build_pb2 import Build, Source
from noronha.v1.file_pb2 import File
from noronha.v1.resource_pb2 import Resource
from noronha.v1.task_status_pb2 import TaskStatus

LEASE = 8.0
"""Seconds for which a builder that fell silent keeps a build from being begun again."""

AT_ONCE = 2
"""Builds that one builder makes at the same time; the others wait, PENDING."""

MAX_ATTEMPTS = 3
"""Times a build is begun before it is given up, when the builder dies each time."""

_ENDED = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED})
_UNENDED = json.dumps({"status.state": {"$in": ["PENDING", "RUNNING"]}})
_SWEEP_EVERY = 3600.0
_CANCEL_PATIENCE = 15.0

log = logging.getLogger("noronha.builder")


@dataclass
class _Running:
    """A build that this builder holds the lease of."""

    build: Build
    fence: int
    work: asyncio.Task[None] | None = None
    whole: asyncio.Task[None] | None = None
    cancelled: bool = False
    lost: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Builds:
    """The builds of one builder."""

    def __init__(self, context: Context, backend: Backend, logs: Logs) -> None:
        """Takes an opened backend."""
        self._context = context
        self._peers = context.peers
        self._backend = backend
        self._logs = logs
        self._holder = f"builder-{uuid.uuid4().hex}"
        self._running: dict[str, _Running] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        # Held while a build is taken on, so that the look for orphans and a creation never take on the same one.
        self._taking = asyncio.Lock()
        self._exports: Path = context.state_dir("builder") / "exports"

    async def open(self) -> None:
        """Removes what repositories an earlier run had fetched half-way."""
        self._exports.mkdir(mode=0o700, exist_ok=True)
        left = list(self._exports.iterdir())
        if left:
            await commands.end_marked(*(path.name for path in left))
            for path in left:
                await asyncio.to_thread(folders.remove, path)

    async def close(self) -> None:
        """Ends what runs; the records stay as they are, for the next builder to begin again."""
        wholes = [running.whole for running in self._running.values() if running.whole is not None]
        for whole in wholes:
            whole.cancel()
        await asyncio.gather(*wholes, return_exceptions=True)

    async def busy(self) -> bool:
        """Says whether a build runs."""
        return bool(self._running)

    async def stop(self) -> None:
        """Cancels every build that runs and waits until they have ended."""
        for running in list(self._running.values()):
            await self._cancel(running)
        await asyncio.gather(*(running.over.wait() for running in list(self._running.values())))

    # Creating

    async def create(self, request: builder_pb2.CreateBuildRequest) -> Build:
        """Accepts a build and begins to make it; see ``Builder.CreateBuild``."""
        project_name = names.parse(request.parent, "project", field="parent")
        tag = names.check_tag(request.build_id, "build_id")
        if len(request.request_id) > 36:
            raise InvalidArgument("request_id has more than 36 characters", reason="BAD_REQUEST_ID")
        project = await self._peers.metadata.GetProject(metadata_pb2.GetProjectRequest(name=str(project_name)))
        source = await self._source(request, project.git_repository)
        build = Build(
            name=names.join("build", *project_name.ids, tag), source=source, no_cache=request.build.no_cache,
            labels=request.build.labels, status=TaskStatus(state=TaskStatus.PENDING, update_time=_now()),
        )  # fmt: skip
        body = builder_pb2.CreateBuildRequest()
        body.CopyFrom(request)
        body.request_id = ""
        async with self._taking:
            record = await self._peers.records.CreateRecord(
                records_pb2.CreateRecordRequest(
                    resource=Resource(build=build),
                    request_id=request.request_id,
                    request_fingerprint=hashlib.sha256(body.SerializeToString(deterministic=True)).digest(),
                    lease_holder=self._holder,
                    lease_duration=_seconds(LEASE),
                )
            )
            created: Build = record.resource.build
            reference = _reference(created)
            if record.lease.holder == self._holder and reference not in self._running:
                current = await self._current(created)
                await self._alone(created, record.lease.fence)
                if current.status.state not in _ENDED:
                    self._take(created, record.lease.fence)
        return created

    async def _source(self, request: builder_pb2.CreateBuildRequest, repository: str) -> Source:
        """Returns the source as the record keeps it, its upload held."""
        asked = request.build.source
        if asked.origin not in (Source.LOCAL, Source.GIT, Source.PRE_BUILT):
            raise InvalidArgument(
                "the build does not say where its source comes from", reason="BAD_ORIGIN",
                violations=[("build.source.origin", "must be LOCAL, GIT or PRE_BUILT")],
            )  # fmt: skip
        if asked.origin not in self._backend.origins:
            word = Source.Origin.Name(asked.origin).lower().replace("_", "-")
            raise Unimplemented(
                f"this mesh cannot build from a {word} source; build from the project's folder or from git",
                reason="SOURCE_NOT_SUPPORTED", origin=word,
            )  # fmt: skip
        source = Source(
            origin=asked.origin,
            git_repository=asked.git_repository,
            git_reference=git.check_reference(asked.git_reference),
            git_commit=asked.git_commit,
            git_dirty=asked.git_dirty,
            image=asked.image,
        )
        if asked.upload:
            source.files.extend(await self._held(asked.upload, sources.check_files(request.files)))
            if not source.files:
                raise sources.no_source("the project has no files; is everything listed in .dockerignore?")
        elif asked.origin == Source.LOCAL:
            raise sources.no_source("a local source has to be uploaded first; name the upload")
        elif asked.origin == Source.GIT:
            source.git_repository = asked.git_repository or repository
            source.git_commit = ""
            if not source.git_repository:
                raise sources.no_source(
                    "the project has no Git repository; set one with: nha proj update --git-repo URL"
                )
            git.check_repository(source.git_repository, self._context.settings.mesh.allowed_mounts)
        return source

    async def _held(self, upload: str, files: list[File]) -> list[File]:
        """Returns the files with their sizes, once Store holds them all for us."""
        principal = principals.current()
        sealed = await self._peers.store.SealUpload(
            store_pb2.SealUploadRequest(upload=upload, subject=principal.identity, tenant=principal.tenant)
        )
        sizes = {blob.digest: blob.size_bytes for blob in sealed.entries}
        for file in files:
            if file.digest not in sizes:
                raise FailedPrecondition(
                    f"the upload does not hold {file.path}; offer its digest as well", reason="BLOB_NOT_HELD",
                    path=file.path, digest=file.digest,
                )  # fmt: skip
            file.size_bytes = sizes[file.digest]
        return files

    async def _alone(self, created: Build, fence: int) -> None:
        """Gives a new revision up again when an earlier one of its tag is still being made."""
        for other in await self._revisions(created.name):
            if other.revision < created.revision and other.status.state not in _ENDED:
                await self._peers.records.DeleteRecord(
                    records_pb2.DeleteRecordRequest(name=_full(created), fence=fence)
                )
                raise Aborted(
                    f"{_full(other)} is being built; wait for it or cancel it",
                    reason="BUILD_RUNNING",
                    build=_full(other),
                )

    async def _current(self, created: Build) -> Build:
        """Returns the record as it is now, which for a repeated request is not always as it was made.

        Raises Aborted ``BUILD_RUNNING`` when the request was refused before, and its revision given up.
        """
        with contextlib.suppress(NotFound):
            current = await self._get(_full(created))
            if current.create_time == created.create_time:
                return current
        raise Aborted(
            f"another build of {created.name} was running when this was first asked for; ask anew",
            reason="BUILD_RUNNING",
            build=created.name,
        )

    # Making

    def _take(self, build: Build, fence: int) -> None:
        running = _Running(build, fence)
        self._running[_reference(build)] = running
        running.whole = asyncio.get_running_loop().create_task(self._see_through(running), name=f"build {_full(build)}")

    async def _see_through(self, running: _Running) -> None:
        """Makes a build, holds its lease meanwhile, and writes down how it ended."""
        tenant = principals.current().tenant
        principals.become(Principal(Kind.SERVICE, "builder", tenant))
        reference = _reference(running.build)
        renewing = asyncio.create_task(self._renew(running))
        try:
            running.work = asyncio.create_task(self._work(running, reference))
            if running.cancelled:
                running.work.cancel()
            await asyncio.wait([running.work])
            if not running.lost:
                await self._finish(running, reference)
        except (Aborted, NotFound) as error:
            log.warning("%s is no longer ours to write: %s", _full(running.build), error)
        except NoronhaError as error:
            # Its record stays unended and its lease runs out, so that it is begun again.
            log.error("%s could not be ended: %s", _full(running.build), error)
        finally:
            if running.work is not None and not running.work.done():
                running.work.cancel()
                await asyncio.wait([running.work])
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            del self._running[reference]
            running.over.set()
            self._logs.wake(reference)

    async def _work(self, running: _Running, reference: str) -> None:
        build = running.build
        if running.fence > MAX_ATTEMPTS:
            raise FailedPrecondition(
                f"the builder died {MAX_ATTEMPTS} times during this build; the mesh's log may say why",
                reason="BUILDER_DIED",
            )
        async with self._slots:
            build.status.state = TaskStatus.RUNNING
            build.status.start_time.CopyFrom(_now())
            await self._write(running, "status")
            made = await self._make(running, reference)
        build.artifact.CopyFrom(made.artifact)
        build.notices[:] = made.notices
        build.build_time.CopyFrom(_now())

    async def _make(self, running: _Running, reference: str) -> Made:
        build = running.build
        run = uuid.uuid4().hex

        def tell(line: str) -> None:
            self._logs.write(reference, line)

        tell(f"building {_full(build)}" + (f", attempt {running.fence}" if running.fence > 1 else ""))
        export = self._exports / run
        notices: list[str] = []
        tree: Tree | None = None
        try:
            if build.source.files:
                tree = sources.UploadedTree(self._peers, list(build.source.files))
            elif build.source.origin == Source.GIT:
                with folders.disk(self._exports):
                    tree, notices = await self._export(running, export, run)
            made = await self._backend.build(Job(reference, build, tree, run), tell)
        finally:
            if export.exists():
                await asyncio.shield(asyncio.to_thread(folders.remove, export))
        return Made(made.artifact, [*notices, *made.notices])

    async def _export(self, running: _Running, target: Path, run: str) -> tuple[Tree, list[str]]:
        """Fetches the commit to build, and writes down which it is before anything is made of it."""
        source = running.build.source
        reference = _reference(running.build)
        transport = git.check_repository(source.git_repository, self._context.settings.mesh.allowed_mounts)
        found = await git.export(
            source.git_repository, source.git_commit or source.git_reference, target, transport=transport, mark=run,
            log=lambda line: self._logs.write(reference, line),
        )  # fmt: skip
        source.git_commit = found.commit
        await self._write(running, "source")
        if not found.files:
            raise sources.no_source("the commit holds no files")
        return sources.FolderTree(target / "files", found.files), found.notices

    async def _finish(self, running: _Running, reference: str) -> None:
        assert running.work is not None
        status = running.build.status
        error = _error_of(running)
        if error is None:
            status.state, status.progress = TaskStatus.SUCCEEDED, 1.0
            self._logs.write(reference, "built")
        else:
            status.state = TaskStatus.CANCELLED if running.cancelled else TaskStatus.FAILED
            status.error.CopyFrom(to_status(error))
            status.reason = error.reason
            running.build.ClearField("artifact")
            self._logs.write(reference, "cancelled" if running.cancelled else f"failed: {error.message}")
        status.end_time.CopyFrom(_now())
        await self._write(running, "status", "artifact", "notices", "build_time")
        if error is not None:
            await self._backend.forget(reference)
        with contextlib.suppress(NoronhaError):
            await self._peers.records.ReleaseLease(
                records_pb2.ReleaseLeaseRequest(name=_full(running.build), fence=running.fence)
            )

    async def _write(self, running: _Running, *fields: str) -> None:
        """Writes fields of the record, once Metadata answers. Raises Aborted or NotFound when the lease is lost."""
        running.build.status.update_time.CopyFrom(_now())
        request = records_pb2.UpdateRecordRequest(
            resource=Resource(build=running.build),
            update_mask=field_mask_pb2.FieldMask(paths=fields),
            fence=running.fence,
        )
        request.resource.build.etag = ""
        while True:
            try:
                await self._peers.records.UpdateRecord(request)
                return
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(0.5)
            except (Aborted, NotFound):
                running.lost = True
                raise

    async def _renew(self, running: _Running) -> None:
        request = records_pb2.AcquireLeaseRequest(
            name=_full(running.build), holder=self._holder, duration=_seconds(LEASE)
        )
        while True:
            await asyncio.sleep(LEASE / 4)
            try:
                lease = await self._peers.records.AcquireLease(request)
            except (FailedPrecondition, NotFound) as error:
                log.warning("%s is no longer ours to build: %s", _full(running.build), error)
                running.lost = True
                if running.work is not None:
                    running.work.cancel()
                return
            except NoronhaError as error:
                log.warning("the lease of %s was not renewed: %s", _full(running.build), error)
                continue
            running.fence = lease.fence

    # Cancelling and deleting

    async def cancel(self, name: str) -> Build:
        """Asks a build to end; see ``Builder.CancelBuild``."""
        build = await self._one(name)
        deadline = asyncio.get_running_loop().time() + _CANCEL_PATIENCE
        while build.status.state not in _ENDED:
            running = self._running.get(_reference(build))
            if running is not None:
                await self._cancel(running)
                return await self._get(_full(build))
            # Its builder died: whoever comes next takes it on within the time of a lease.
            async with self._taking:
                if await self._adopt(build, begin=False):
                    continue
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"the builder that makes {_full(build)} does not answer; try again in a moment",
                    reason="BUILDER_AWAY",
                )
            await asyncio.sleep(0.5)
            build = await self._get(_full(build))
        return build

    async def _cancel(self, running: _Running) -> None:
        running.cancelled = True
        running.build.status.cancel_requested = True
        with contextlib.suppress(Aborted, NotFound):
            await self._write(running, "status.cancel_requested")
        if running.work is not None:
            running.work.cancel()

    async def delete(self, name: str, etag: str) -> None:
        """Deletes a build or one revision of it; see ``Builder.DeleteBuild``."""
        parsed = names.parse(name, "build")
        found = [await self._get(name)] if parsed.revision else await self._revisions(parsed.bare)
        if not found:
            raise NotFound(f"{name} does not exist", name=name)
        for build in found:
            if build.status.state not in _ENDED:
                raise FailedPrecondition(
                    f"{_full(build)} is being built; cancel it first", reason="STILL_RUNNING", name=_full(build)
                )
        await self._check_unused(names.parent_of(parsed), {_full(build) for build in found})
        await self._peers.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=name, etag=etag))
        for build in found:
            await self._backend.forget(_reference(build))
            self._logs.remove(_reference(build))

    async def _check_unused(self, project: str, builds: set[str]) -> None:
        users: list[tuple[str, str]] = []
        token = ""
        while True:
            page = await self._peers.metadata.ListDeployments(
                metadata_pb2.ListDeploymentsRequest(parent=project, page_size=1000, page_token=token)
            )
            users += [(each.name, each.spec.build) for each in page.deployments]
            token = page.next_page_token
            if not token:
                break
        while True:
            trainings = await self._peers.metadata.ListTrainings(
                metadata_pb2.ListTrainingsRequest(parent=project, page_size=1000, page_token=token, filter=_UNENDED)
            )
            users += [(each.name, each.build) for each in trainings.trainings]
            token = trainings.next_page_token
            if not token:
                break
        for user, build in users:
            if build in builds:
                raise FailedPrecondition(
                    f"{user} uses {build}; remove or move it first", reason="IN_USE", name=build, user=user
                )

    # Logs

    async def tail(self, name: str, position: str, lines: int, follow: bool) -> AsyncIterator[Piece]:
        """Yields a build's log; a bare name means the newest revision."""
        build = await self._one(name)
        reference = _reference(build)

        async def ended() -> bool:
            if reference in self._running:
                return False
            return self._context.stopping.is_set() or (await self._get(_full(build))).status.state in _ENDED

        async for piece in self._logs.tail(reference, position=position, lines=lines, ended=ended if follow else None):
            yield piece

    # Beside the calls

    async def reconcile(self) -> None:
        """Takes on builds whose builder died, and forgets results whose record is gone, for ever."""
        principals.become(Principal(Kind.SERVICE, "builder"))
        loop = asyncio.get_running_loop()
        swept = loop.time() - _SWEEP_EVERY + 30
        while True:
            waiting = await self._adopt_all()
            if loop.time() - swept > _SWEEP_EVERY:
                swept = loop.time()
                await self._sweep()
            await asyncio.sleep(1.0 if waiting else 5.0)

    async def _adopt_all(self) -> bool:
        """Takes on what can be; returns whether builds are left that somebody else still holds."""
        waiting = False
        token = ""
        while True:
            page = await self._peers.metadata.ListBuilds(
                metadata_pb2.ListBuildsRequest(
                    parent="projects/-", filter=_UNENDED, all_revisions=True, page_size=100, page_token=token
                )
            )
            for build in page.builds:
                async with self._taking:
                    if _reference(build) not in self._running and not await self._adopt(build, begin=True):
                        waiting = True
            token = page.next_page_token
            if not token:
                return waiting

    async def _adopt(self, build: Build, *, begin: bool) -> bool:
        """Takes on a build that nobody holds, to make it or only to end it; returns whether it is ours now."""
        if _reference(build) in self._running:
            return True
        try:
            lease = await self._peers.records.AcquireLease(
                records_pb2.AcquireLeaseRequest(name=_full(build), holder=self._holder, duration=_seconds(LEASE))
            )
        except NotFound:
            return True
        except FailedPrecondition:
            return False
        current = await self._get(_full(build))
        if current.status.state in _ENDED:
            return True
        log.info("%s is taken on, attempt %d", _full(current), lease.fence)
        self._take(current, lease.fence)
        running = self._running[_reference(current)]
        if current.status.cancel_requested or not begin:
            running.cancelled = True
        return True

    async def _sweep(self) -> None:
        """Forgets what was kept for builds whose records are gone, such as those of a deleted project."""
        for reference in await self._backend.references():
            tenant, _, name = reference.partition(" ")
            if reference in self._running:
                continue
            before = principals.current()
            principals.become(Principal(Kind.SERVICE, "builder", tenant))
            try:
                await self._get(name)
            except NotFound:
                log.info("forgetting %s, whose record is gone", name)
                await self._backend.forget(reference)
                self._logs.remove(reference)
            finally:
                principals.become(before)

    # Reading

    async def _get(self, name: str) -> Build:
        build: Build = await self._peers.metadata.GetBuild(metadata_pb2.GetBuildRequest(name=name))
        return build

    async def _revisions(self, name: str, limit: int = 1000) -> Sequence[Build]:
        """Returns the revisions of a build, newest first, without their files."""
        parent = names.parent_of(names.parse(name, "build"))
        page = await self._peers.metadata.ListBuilds(
            metadata_pb2.ListBuildsRequest(
                parent=parent,
                filter=json.dumps({"name": name}),
                all_revisions=True,
                page_size=limit,
                read_mask=field_mask_pb2.FieldMask(paths=["name", "revision", "status", "create_time", "etag"]),
            )
        )
        builds: Sequence[Build] = page.builds
        return builds

    async def _one(self, name: str) -> Build:
        """Returns the revision that is named, or the newest."""
        parsed = names.parse(name, "build")
        if parsed.revision is None:
            found = await self._revisions(parsed.bare, 1)
            if not found:
                raise NotFound(f"{name} does not exist", name=name)
            return found[0]
        return await self._get(name)


def _error_of(running: _Running) -> NoronhaError | None:
    """Returns why a build's work ended, None when it ended well."""
    assert running.work is not None
    if running.work.cancelled():
        return Cancelled("the build was cancelled", reason="CANCELLED")
    error = running.work.exception()
    if error is None or isinstance(error, NoronhaError):
        return error
    log.error("building %s failed", _full(running.build), exc_info=error)
    return Internal("something went wrong inside the builder; the mesh's log has the details")


def _full(build: Build) -> str:
    return f"{build.name}@{build.revision}"


def _reference(build: Build) -> str:
    return f"{principals.current().tenant} {_full(build)}"


def _now() -> timestamp_pb2.Timestamp:
    now = timestamp_pb2.Timestamp()
    now.GetCurrentTime()
    return now


def _seconds(value: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(int(value * 1000))
    return duration
