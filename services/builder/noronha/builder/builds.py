"""What is asked for builds: creating, cancelling and deleting them, and reading their logs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from noronha.builder import git, revisions, sources
from noronha.builder.attempts import Attempts, lease_duration
from noronha.builder.backend import Backend
from noronha.builder.logs import Logs, Piece
from noronha.builder.revisions import full_name, has_ended, reference_of
from noronha.chassis import principals, request_ids
from noronha.chassis.mount import Context
from noronha.chassis.timestamps import now
from noronha.rpc import names
from noronha.rpc.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unimplemented
from noronha.v1 import builder_pb2, metadata_pb2, records_pb2, store_pb2
from noronha.v1.build_pb2 import Build, Source
from noronha.v1.file_pb2 import File
from noronha.v1.resource_pb2 import Resource
from noronha.v1.task_status_pb2 import TaskStatus

_CANCEL_PATIENCE = 15.0


class Builds:
    """The builds of one builder."""

    def __init__(self, context: Context, backend: Backend, logs: Logs, attempts: Attempts) -> None:
        self._context = context
        self._peers = context.peers
        self._backend = backend
        self._logs = logs
        self._attempts = attempts

    async def create(self, request: builder_pb2.CreateBuildRequest) -> Build:
        """Accepts a build and begins to make it; see ``Builder.CreateBuild``."""
        project_name = names.parse(request.parent, "project", field="parent")
        tag = names.check_tag(request.build_id, "build_id")
        request_ids.check(request.request_id)
        project = await self._peers.metadata.GetProject(metadata_pb2.GetProjectRequest(name=str(project_name)))
        source = await self._source(request, project.git_repository)
        build = Build(
            name=names.join("build", *project_name.ids, tag), source=source, no_cache=request.build.no_cache,
            labels=request.build.labels, status=TaskStatus(state=TaskStatus.PENDING, update_time=now()),
        )  # fmt: skip
        async with self._attempts.taking:
            record = await self._peers.records.CreateRecord(
                records_pb2.CreateRecordRequest(
                    resource=Resource(build=build),
                    request_id=request.request_id,
                    request_fingerprint=request_ids.fingerprint(request, principals.current()),
                    lease_holder=self._attempts.holder,
                    lease_duration=lease_duration(),
                )
            )
            created: Build = record.resource.build
            if record.lease.holder == self._attempts.holder and self._attempts.running(created) is None:
                current = await self._current(created)
                await self._alone(created, record.lease.fence)
                if not has_ended(current):
                    self._attempts.take(created, record.lease.fence)
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
            store_pb2.SealUploadRequest(upload=upload, subject=principal.identity)
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
        for other in await revisions.all_of(self._peers, created.name):
            if other.revision < created.revision and not has_ended(other):
                await self._peers.records.DeleteRecord(
                    records_pb2.DeleteRecordRequest(name=full_name(created), fence=fence)
                )
                raise Aborted(
                    f"{full_name(other)} is being built; wait for it or cancel it",
                    reason="BUILD_RUNNING",
                    build=full_name(other),
                )

    async def _current(self, created: Build) -> Build:
        """Returns the record as it is now, which for a repeated request is not always as it was made.

        Raises Aborted ``BUILD_RUNNING`` when the request was refused before, and its revision given up.
        """
        with contextlib.suppress(NotFound):
            current = await revisions.get(self._peers, full_name(created))
            if current.create_time == created.create_time:
                return current
        raise Aborted(
            f"another build of {created.name} was running when this was first asked for; ask anew",
            reason="BUILD_RUNNING",
            build=created.name,
        )

    async def cancel(self, name: str) -> Build:
        """Asks a build to end; see ``Builder.CancelBuild``."""
        build = await revisions.named(self._peers, name)
        deadline = asyncio.get_running_loop().time() + _CANCEL_PATIENCE
        while not has_ended(build):
            async with self._attempts.taking:
                # Where its builder died, its lease runs out soon; then it is ours to end.
                attempt = await self._attempts.adopt(build, begin=False)
            if attempt is not None:
                await self._attempts.cancel(attempt)
            elif asyncio.get_running_loop().time() > deadline:
                raise Unavailable(
                    f"the builder that makes {full_name(build)} does not answer; try again in a moment",
                    reason="BUILDER_AWAY",
                )
            else:
                await asyncio.sleep(0.5)
            build = await revisions.get(self._peers, full_name(build))
            if build.status.cancel_requested:
                break
        return build

    async def delete(self, name: str, etag: str) -> None:
        """Deletes a build or one revision of it; see ``Builder.DeleteBuild``."""
        parsed = names.parse(name, "build")
        found = (
            [await revisions.get(self._peers, name)]
            if parsed.revision
            else await revisions.all_of(self._peers, parsed.bare)
        )
        if not found:
            raise NotFound(f"{name} does not exist", name=name)
        for build in found:
            if not has_ended(build):
                raise FailedPrecondition(
                    f"{full_name(build)} is being built; cancel it first", reason="STILL_RUNNING", name=full_name(build)
                )
        await self._peers.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=name, etag=etag))
        for build in found:
            await self._backend.forget(reference_of(build))
            self._logs.remove(reference_of(build))

    async def tail(self, name: str, position: str, lines: int, follow: bool) -> AsyncIterator[Piece]:
        """Yields a build's log; a bare name means the newest revision."""
        build = await revisions.named(self._peers, name)

        async def ended() -> bool:
            if self._attempts.running(build) is not None:
                return False
            return self._context.stopping.is_set() or has_ended(await revisions.get(self._peers, full_name(build)))

        async for piece in self._logs.tail(
            reference_of(build), position=position, lines=lines, ended=ended if follow else None
        ):
            yield piece
