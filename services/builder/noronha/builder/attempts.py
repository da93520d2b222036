"""Attempts at builds: taken on under a lease, made, written down, and begun again after a builder that died."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import duration_pb2, field_mask_pb2

from noronha.builder import commands, folders, git, revisions, sources
from noronha.builder.backend import Backend, Job, Made, Tree
from noronha.builder.logs import Logs
from noronha.builder.revisions import full_name, has_ended, reference_of
from noronha.chassis import principals
from noronha.chassis.mount import Context
from noronha.chassis.principals import Kind, Principal
from noronha.chassis.timestamps import now
from noronha.rpc.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NoronhaError,
    NotFound,
    Unavailable,
    to_status,
)
from noronha.v1 import records_pb2
from noronha.v1.build_pb2 import Build, Source
from noronha.v1.resource_pb2 import Resource
from noronha.v1.task_status_pb2 import TaskStatus

LEASE = 8
"""Seconds for which a builder that fell silent keeps a build from being begun again."""

AT_ONCE = 2
"""Builds that one builder makes at the same time; the others wait, PENDING."""

MAX_ATTEMPTS = 3
"""Times a build is begun before it is given up, when the builder dies each time."""

_SWEEP_EVERY = 3600.0

log = logging.getLogger("noronha.builder")


@dataclass
class Attempt:
    """A build that this builder holds the lease of."""

    build: Build
    fence: int
    work: asyncio.Task[None] | None = None
    whole: asyncio.Task[None] | None = None
    cancelled: bool = False
    lost: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Attempts:
    """The builds that one builder makes."""

    def __init__(self, context: Context, backend: Backend, logs: Logs) -> None:
        """Takes an opened backend."""
        self.holder = f"builder-{uuid.uuid4().hex}"
        """Who this builder is as the holder of leases, unique to this run."""
        self.taking = asyncio.Lock()
        """Held while a build is taken on, so that a creation and the look for orphans never take on the same one."""
        self._context = context
        self._peers = context.peers
        self._backend = backend
        self._logs = logs
        self._running: dict[str, Attempt] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
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
        wholes = [attempt.whole for attempt in self._running.values() if attempt.whole is not None]
        for whole in wholes:
            whole.cancel()
        await asyncio.gather(*wholes, return_exceptions=True)

    async def busy(self) -> bool:
        """Says whether a build runs."""
        return bool(self._running)

    async def stop(self) -> None:
        """Cancels every build that runs and waits until they have ended."""
        for attempt in list(self._running.values()):
            await self.cancel(attempt)
        await asyncio.gather(*(attempt.over.wait() for attempt in list(self._running.values())))

    def running(self, build: Build) -> Attempt | None:
        """Returns the attempt at a build that runs here."""
        return self._running.get(reference_of(build))

    def take(self, build: Build, fence: int) -> Attempt:
        """Begins to make a build whose lease was taken."""
        attempt = Attempt(build, fence)
        self._running[reference_of(build)] = attempt
        attempt.whole = asyncio.get_running_loop().create_task(
            self._see_through(attempt), name=f"build {full_name(build)}"
        )
        return attempt

    async def _see_through(self, attempt: Attempt) -> None:
        """Makes a build, holds its lease meanwhile, and writes down how it ended."""
        tenant = principals.current().tenant
        principals.become(Principal(Kind.SERVICE, "builder", tenant))
        reference = reference_of(attempt.build)
        renewing = asyncio.create_task(self._renew(attempt))
        try:
            attempt.work = asyncio.create_task(self._work(attempt, reference))
            if attempt.cancelled:
                attempt.work.cancel()
            await asyncio.wait([attempt.work])
            if not attempt.lost:
                await self._finish(attempt, reference)
        except (Aborted, NotFound) as error:
            log.warning("%s is no longer ours to write: %s", full_name(attempt.build), error)
        except NoronhaError as error:
            # Its record stays unended and its lease runs out, so that it is begun again.
            log.error("%s could not be ended: %s", full_name(attempt.build), error)
        finally:
            if attempt.work is not None and not attempt.work.done():
                attempt.work.cancel()
                await asyncio.wait([attempt.work])
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            del self._running[reference]
            attempt.over.set()
            self._logs.wake(reference)

    async def _work(self, attempt: Attempt, reference: str) -> None:
        build = attempt.build
        if attempt.fence > MAX_ATTEMPTS:
            raise FailedPrecondition(
                f"the builder died {MAX_ATTEMPTS} times during this build; the mesh's log may say why",
                reason="BUILDER_DIED",
            )
        async with self._slots:
            build.status.state = TaskStatus.RUNNING
            build.status.start_time.CopyFrom(now())
            await self._write(attempt, "status")
            made = await self._make(attempt, reference)
        build.artifact.CopyFrom(made.artifact)
        build.notices[:] = made.notices
        build.build_time.CopyFrom(now())

    async def _make(self, attempt: Attempt, reference: str) -> Made:
        build = attempt.build
        run = uuid.uuid4().hex

        def tell(line: str) -> None:
            self._logs.write(reference, line)

        tell(f"building {revisions.written(build)}" + (f", attempt {attempt.fence}" if attempt.fence > 1 else ""))
        export = self._exports / run
        notices: list[str] = []
        tree: Tree | None = None
        try:
            if build.source.files:
                tree = sources.UploadedTree(self._peers, list(build.source.files))
            elif build.source.origin == Source.GIT:
                with folders.disk(self._exports):
                    tree, notices = await self._export(attempt, export, run)
                for notice in notices:
                    tell(f"notice: {notice}")
            made = await self._backend.build(Job(reference, build, tree, run), tell)
        finally:
            if export.exists():
                await asyncio.shield(asyncio.to_thread(folders.remove, export))
        return Made(made.artifact, [*notices, *made.notices])

    async def _export(self, attempt: Attempt, target: Path, run: str) -> tuple[Tree, list[str]]:
        """Fetches the commit to build, and writes down which it is before anything is made of it."""
        source = attempt.build.source
        reference = reference_of(attempt.build)
        transport = git.check_repository(source.git_repository, self._context.settings.mesh.allowed_mounts)
        found = await git.export(
            source.git_repository, source.git_commit or source.git_reference, target, transport=transport, mark=run,
            log=lambda line: self._logs.write(reference, line),
        )  # fmt: skip
        source.git_commit = found.commit
        await self._write(attempt, "source")
        if not found.files:
            raise sources.no_source("the commit holds no files")
        return sources.FolderTree(target / "files", found.files), found.notices

    async def _finish(self, attempt: Attempt, reference: str) -> None:
        assert attempt.work is not None
        status = attempt.build.status
        error = _error_of(attempt)
        if error is None:
            status.state, status.progress = TaskStatus.SUCCEEDED, 1.0
            self._logs.write(reference, "built")
        else:
            status.state = TaskStatus.CANCELLED if attempt.cancelled else TaskStatus.FAILED
            status.error.CopyFrom(to_status(error))
            status.reason = error.reason
            attempt.build.ClearField("artifact")
            self._logs.write(reference, "cancelled" if attempt.cancelled else f"failed: {error.message}")
        status.end_time.CopyFrom(now())
        await self._write(attempt, "status", "artifact", "notices", "build_time")
        if error is not None:
            await self._backend.forget(reference)
        with contextlib.suppress(NoronhaError):
            await self._peers.records.ReleaseLease(
                records_pb2.ReleaseLeaseRequest(name=full_name(attempt.build), fence=attempt.fence)
            )

    async def _write(self, attempt: Attempt, *fields: str) -> None:
        """Writes fields of the record, once Metadata answers. Raises Aborted or NotFound when the lease is lost."""
        attempt.build.status.update_time.CopyFrom(now())
        request = records_pb2.UpdateRecordRequest(
            resource=Resource(build=attempt.build),
            update_mask=field_mask_pb2.FieldMask(paths=fields),
            fence=attempt.fence,
        )
        request.resource.build.etag = ""
        while True:
            try:
                await self._peers.records.UpdateRecord(request)
                return
            except (Unavailable, DeadlineExceeded):
                await asyncio.sleep(0.5)
            except (Aborted, NotFound):
                attempt.lost = True
                raise

    async def _renew(self, attempt: Attempt) -> None:
        request = records_pb2.AcquireLeaseRequest(
            name=full_name(attempt.build), holder=self.holder, duration=lease_duration()
        )
        while True:
            await asyncio.sleep(LEASE / 4)
            try:
                lease = await self._peers.records.AcquireLease(request)
                if lease.fence != attempt.fence:
                    # It ran out, and somebody else held it before it was free again: what they did stands.
                    release = records_pb2.ReleaseLeaseRequest(name=request.name, fence=lease.fence)
                    await self._peers.records.ReleaseLease(release)
                    raise Aborted(f"another Builder held {request.name} meanwhile", reason="STALE_FENCE")
            except (FailedPrecondition, Aborted, NotFound) as error:
                log.warning("%s is no longer ours to build: %s", full_name(attempt.build), error)
                attempt.lost = True
                if attempt.work is not None:
                    attempt.work.cancel()
                return
            except NoronhaError as error:
                log.warning("the lease of %s was not renewed: %s", full_name(attempt.build), error)

    async def cancel(self, attempt: Attempt) -> None:
        """Has an attempt end as cancelled, and writes down that it was asked for."""
        attempt.cancelled = True
        attempt.build.status.cancel_requested = True
        with contextlib.suppress(Aborted, NotFound):
            await self._write(attempt, "status.cancel_requested")
        if attempt.work is not None:
            attempt.work.cancel()

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
        for build in await revisions.unended(self._peers):
            async with self.taking:
                if await self.adopt(build, begin=True) is None:
                    with contextlib.suppress(NotFound):
                        waiting |= not has_ended(await revisions.get(self._peers, full_name(build)))
        return waiting

    async def adopt(self, build: Build, *, begin: bool) -> Attempt | None:
        """Takes on a build that nobody holds, to make it or only to end it; returns its attempt when it is ours then.

        Callers hold ``taking``.
        """
        attempt = self.running(build)
        if attempt is not None:
            return attempt
        try:
            lease = await self._peers.records.AcquireLease(
                records_pb2.AcquireLeaseRequest(name=full_name(build), holder=self.holder, duration=lease_duration())
            )
            current = await revisions.get(self._peers, full_name(build))
        except (FailedPrecondition, NotFound):
            return None
        if has_ended(current):
            return None
        log.info("%s is taken on, attempt %d", full_name(current), lease.fence)
        attempt = self.take(current, lease.fence)
        attempt.cancelled = current.status.cancel_requested or not begin
        return attempt

    async def _sweep(self) -> None:
        """Forgets what was kept for builds whose records are gone, such as those of a deleted project."""
        for reference in await self._backend.references():
            tenant, _, name = reference.partition(" ")
            if reference in self._running:
                continue
            before = principals.current()
            principals.become(Principal(Kind.SERVICE, "builder", tenant))
            try:
                await revisions.get(self._peers, name)
            except NotFound:
                log.info("forgetting %s, whose record is gone", name)
                await self._backend.forget(reference)
                self._logs.remove(reference)
            finally:
                principals.become(before)


def _error_of(attempt: Attempt) -> NoronhaError | None:
    """Returns why a build's work ended, None when it ended well."""
    assert attempt.work is not None
    if attempt.work.cancelled():
        return Cancelled("the build was cancelled", reason="CANCELLED")
    error = attempt.work.exception()
    if error is None or isinstance(error, NoronhaError):
        return error
    log.error("building %s failed", full_name(attempt.build), exc_info=error)
    return Internal("something went wrong inside the builder; the mesh's log has the details")


def lease_duration() -> duration_pb2.Duration:
    """Returns how long a lease lasts."""
    return duration_pb2.Duration(seconds=int(LEASE))
