"""The files of versions and datasets: what an upload holds, and what the model's definition asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noronha.chassis.principals import Principal
from noronha.metadata.catalog import Catalog
from noronha.metadata.fields import Violations
from noronha.rpc.chunks import MAX_FILES, MAX_LIGHTWEIGHT_MB, check_digest, check_path, clash_of
from noronha.rpc.errors import FailedPrecondition, InvalidArgument
from noronha.v1 import file_pb2, store_pb2

_MIB = 1 << 20
_ARCHIVE = ".tar.gz"


def check_manifest(files: Sequence[Any], upload: str) -> None:
    """Checks what a writer says of its files, before anybody is asked.

    Raises InvalidArgument ``NO_FILES``, ``UPLOAD_REQUIRED``, ``TOO_MANY_FILES``, ``BAD_PATH``, ``BAD_DIGEST``.
    """
    if files and not upload:
        raise InvalidArgument("files need the upload that holds them", reason="UPLOAD_REQUIRED")
    if upload and not files:
        raise InvalidArgument("an upload needs the files it is for; send neither to record none", reason="NO_FILES")
    if len(files) > MAX_FILES:
        raise InvalidArgument(
            f"{len(files):,} files are too many; at most {MAX_FILES:,} are kept of one name", reason="TOO_MANY_FILES"
        )
    for index, file in enumerate(files):
        check_path(file.path, f"files[{index}].path")
        check_digest(file.digest, f"files[{index}].digest")
    if clash := clash_of([file.path for file in files]):
        index, why = clash
        path = files[index].path[:80]
        raise InvalidArgument(
            f"file path {path!r} {why}", reason="BAD_PATH", violations=[(f"files[{index}].path", why)], path=path
        )


async def seal(catalog: Catalog, caller: Principal, upload: str) -> Any:
    """Returns an upload, whole and held, or raises what Store says of it."""
    request = store_pb2.SealUploadRequest(upload=upload, subject=caller.identity)
    return await catalog.store.SealUpload(request)


def take(sealed: Any, files: Sequence[Any]) -> list[Any]:
    """Returns the files as they are recorded: sorted, each held by the upload and of the size that Store knows.

    Raises FailedPrecondition ``BLOB_NOT_HELD``.
    """
    sizes = {entry.digest: entry.size_bytes for entry in sealed.entries}
    taken = []
    for file in files:
        if file.digest not in sizes:
            raise FailedPrecondition(
                f"{file.path} names a blob that the upload does not hold; upload it first",
                reason="BLOB_NOT_HELD", path=file.path, digest=file.digest,
            )  # fmt: skip
        taken.append(
            file_pb2.File(path=file.path, digest=file.digest, size_bytes=sizes[file.digest], executable=file.executable)
        )
    return sorted(taken, key=lambda file: str(file.path))


def check_definition(files: Sequence[Any], specs: Sequence[Any], *, compressed: bool, what: str) -> None:
    """Checks files against the model's definition; an empty one takes any.

    Raises InvalidArgument ``UNEXPECTED_FILE``, ``BAD_ARCHIVE``; FailedPrecondition ``MISSING_FILE``,
    ``FILE_TOO_LARGE``.
    """
    if compressed:
        if len(files) != 1 or not files[0].path.endswith(_ARCHIVE) or "/" in files[0].path:
            raise InvalidArgument(
                f"compressed files are one archive whose name ends in {_ARCHIVE}; send that alone", reason="BAD_ARCHIVE"
            )
        return
    if not specs:
        return
    by_name = {spec.name: spec for spec in specs}
    unexpected = Violations()
    for file in files:
        if file.path not in by_name:
            unexpected.add("files", f"holds {file.path!r}, which {what} does not name")
    unexpected.settle("UNEXPECTED_FILE")
    present = {file.path for file in files}
    missing = [spec.name for spec in specs if spec.required and spec.name not in present]
    if missing:
        raise FailedPrecondition(
            f"{what} requires {', '.join(missing)}, which is not among the files; add it",
            reason="MISSING_FILE", files=", ".join(missing),
        )  # fmt: skip
    for file in files:
        limit = by_name[file.path].max_mb * _MIB
        if file.size_bytes > limit:
            raise too_large(file.path, file.size_bytes, limit, what)


def too_large(path: str, size: int, limit: int, what: str) -> FailedPrecondition:
    """Returns the error for a file that is larger than it may be."""
    return FailedPrecondition(
        f"{path} has {size:,} bytes; {what} takes at most {limit:,} ({limit // _MIB} MB)",
        reason="FILE_TOO_LARGE", path=path, size_bytes=size, max_bytes=limit,
    )  # fmt: skip


def check_lightweight(files: Sequence[Any], specs: Sequence[Any], what: str) -> None:
    """Checks what may go to the store for small files. Raises FailedPrecondition ``NOT_LIGHTWEIGHT``."""
    why = ""
    if not specs:
        why = f"{what} names no files, and small files need a strict definition"
    for spec in specs:
        if spec.max_mb > MAX_LIGHTWEIGHT_MB:
            why = f"{what} lets {spec.name} have {spec.max_mb} MB; set its max_mb to {MAX_LIGHTWEIGHT_MB} or less"
            break
    for file in files:
        if file.size_bytes > MAX_LIGHTWEIGHT_MB * _MIB:
            why = f"{file.path} has {file.size_bytes:,} bytes; at most {MAX_LIGHTWEIGHT_MB} MB are taken"
    if why:
        raise FailedPrecondition(f"not lightweight: {why}", reason="NOT_LIGHTWEIGHT")
