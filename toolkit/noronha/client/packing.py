"""Which files make up a version, a dataset or a project's source.

Versions and datasets: the files that the model definition names, or, where it names none, everything in the folder.
Sources: everything in the folder but what ``.dockerignore`` leaves out. Links: see ``collect_files`` and
``collect_source``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from noronha.client.ignoring import Ignoring
from noronha.rpc.chunks import DEFAULT_MAX_MB, MAX_FILES, MAX_LIGHTWEIGHT_MB, check_path
from noronha.rpc.errors import FailedPrecondition, InvalidArgument, NotFound
from noronha.v1 import model_pb2

MEBIBYTE = 1 << 20

_SHOWN = 5
"""Most files that a notice names."""

_ALWAYS = ("Dockerfile", ".dockerignore")


class Collected(NamedTuple):
    """Files that belong together, and what the user should know of how they were found."""

    files: list[tuple[str, Path]]
    """Relative path and source of each, sorted by path; what ``noronha.client.transfer.upload`` takes."""
    notices: list[str]


def collect_files(path: Path, specs: Sequence[model_pb2.FileSpec], *, lightweight: bool = False) -> Collected:
    """Returns the files of a version or a dataset that lie at ``path``, a folder or a single file.

    With definitions: the files they name, directly in the folder; others are left out, with a notice unless they are
    hidden. A single file is taken where there is one definition, or one that is required, and is stored under that
    one's name. Links are followed, since the definition names the file. Without definitions: the single file, or every
    file of the folder and of the folders in it, under its path in there. A link to a file in the folder is followed;
    one that leads out of it is refused, and so is a link to a folder.

    Raises NotFound; FailedPrecondition ``MISSING_FILE``, ``FILE_TOO_LARGE``, ``NOT_LIGHTWEIGHT``; InvalidArgument
    ``NOT_A_FILE``, ``BAD_PATH``, ``TOO_MANY_FILES``, ``LINK_LEADS_OUT``.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if lightweight:
        _check_lightweight(specs)
    if not path.exists():
        raise NotFound(f"there is no file or folder {path}", path=path)
    if not specs:
        return _everything(path) if path.is_dir() else Collected([(check_path(path.name), _file(path))], [])
    found = _specified_folder(path, specs) if path.is_dir() else _specified_file(path, specs)
    by_name = {spec.name: spec for spec in specs}
    for name, source in found.files:
        _check_size(name, source, by_name[name])
    return found


def _check_lightweight(specs: Sequence[model_pb2.FileSpec]) -> None:
    if not specs:
        raise FailedPrecondition(
            "the lightweight store needs a strict file definition; name the files in the model",
            reason="NOT_LIGHTWEIGHT",
        )
    for spec in specs:
        if max_mb_of(spec) > MAX_LIGHTWEIGHT_MB:
            raise FailedPrecondition(
                f"file {spec.name} may have {max_mb_of(spec)} MB; "
                f"the lightweight store needs max_mb of at most {MAX_LIGHTWEIGHT_MB} for each file",
                reason="NOT_LIGHTWEIGHT", file=spec.name, max_mb=max_mb_of(spec),
            )  # fmt: skip


def is_required(spec: model_pb2.FileSpec) -> bool:
    """Says whether a publishing without this file is refused; so it is unless the definition says otherwise."""
    return spec.required if spec.HasField("required") else True


def max_mb_of(spec: model_pb2.FileSpec) -> int:
    """Returns the largest size in MiB that a definition allows."""
    return spec.max_mb if spec.HasField("max_mb") else DEFAULT_MAX_MB


def _specified_folder(folder: Path, specs: Sequence[model_pb2.FileSpec]) -> Collected:
    files, notices = [], []
    for spec in specs:
        source = folder / check_path(spec.name)
        if source.exists():
            files.append((spec.name, _file(source)))
        elif is_required(spec):
            raise FailedPrecondition(
                f"required file {spec.name!r} is not in {folder}", reason="MISSING_FILE", file=spec.name, path=folder
            )
        else:
            notices.append(f"Ignoring absent file: {spec.name}")
    notices += _left_out(folder, {spec.name for spec in specs})
    return Collected(sorted(files), notices)


def _left_out(folder: Path, named: set[str]) -> list[str]:
    """Returns the notice of what a folder holds beside the files of a definition, hidden ones not counted.

    Folders without a file are not counted either: a task's own temporary folder may hold some that Noronha mounts on.
    """
    try:
        others = sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.name not in named and not entry.name.startswith(".") and not _is_hollow(entry)
        )
    except PermissionError:  # its files can be opened by name all the same
        return []
    if not others:
        return []
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return [f"Leaving out what the definition does not name: {', '.join(map(repr, others[:_SHOWN]))}{more}"]


def _is_hollow(entry: os.DirEntry[str]) -> bool:
    """Says whether an entry is a folder without a file, however deep; one that cannot be read may have some."""

    def unreadable(error: OSError) -> None:
        raise error

    if not entry.is_dir(follow_symlinks=False):
        return False
    try:
        return not any(
            files or any(os.path.islink(os.path.join(folder, name)) for name in folders)
            for folder, folders, files in os.walk(entry.path, onerror=unreadable)
        )
    except OSError:
        return False


def _specified_file(path: Path, specs: Sequence[model_pb2.FileSpec]) -> Collected:
    required = [spec for spec in specs if is_required(spec)]
    if len(specs) == 1:
        (spec,) = specs
    elif len(required) == 1:
        (spec,) = required
    else:
        names = ", ".join(each.name for each in required or specs)
        raise FailedPrecondition(
            f"{path} is one file and the definition names several ({names}); name the folder that holds them",
            reason="MISSING_FILE", path=path,
        )  # fmt: skip
    notices = [f"Ignoring absent file: {each.name}" for each in specs if each is not spec]
    if path.name != spec.name:
        notices.insert(0, f"File {path.name!r} will be renamed to {spec.name!r}")
    return Collected([(check_path(spec.name), _file(path))], notices)


def _check_size(name: str, source: Path, spec: model_pb2.FileSpec) -> None:
    size, limit = source.stat().st_size, max_mb_of(spec)
    if size > limit * MEBIBYTE:
        raise FailedPrecondition(
            f"file {name} is too large: {size} bytes, and the definition allows {limit} MB ({limit * MEBIBYTE} bytes)",
            reason="FILE_TOO_LARGE", file=name, size_bytes=size, max_mb=limit,
        )  # fmt: skip


def _everything(folder: Path) -> Collected:
    files: list[tuple[str, Path]] = []
    root = Path(os.path.realpath(folder))
    for relative, entry in _walk(root, None):
        if entry.is_symlink() and (entry.is_dir() or not _leads_inside(root, entry)):
            raise InvalidArgument(
                f"{folder / relative} is a link that leads out of {folder} or to a folder; copy there what it leads to",
                reason="LINK_LEADS_OUT", path=relative,
            )  # fmt: skip
        files.append((check_path(relative), _file(Path(entry.path))))
        _check_count(files, folder, "put some together in an archive")
    if not files:
        raise FailedPrecondition(f"{folder} holds no files", reason="MISSING_FILE", path=folder)
    return Collected(sorted(files), [])


def collect_source(folder: Path) -> Collected:
    """Returns the files of a project's source.

    Left out: what ``.dockerignore`` names, in the sense that Docker gives it, and every ``.git``. ``Dockerfile`` and
    ``.dockerignore`` themselves are always taken, as a build needs them. A link to a file inside the folder becomes
    that file; a link that leads out of it or to a folder, and what is no file, is left out with a notice.

    Raises NotFound; FailedPrecondition ``MISSING_FILE`` for an empty folder; InvalidArgument ``NOT_A_FOLDER``,
    ``TOO_MANY_FILES``, ``BAD_PATH``, ``BAD_DOCKERIGNORE``.
    """
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    if not folder.exists():
        raise NotFound(f"there is no folder {folder}", path=folder)
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is a file; name the project's folder", reason="NOT_A_FOLDER", path=folder)
    root = Path(os.path.realpath(folder))
    ignoring = Ignoring.of(root)
    files: list[tuple[str, Path]] = []
    notices: list[str] = []
    for relative, entry in _walk(root, ignoring):
        if entry.is_symlink() and (entry.is_dir() or not _leads_inside(root, entry)):
            notices.append(f"Leaving out {relative}: the link leads out of the folder, to a folder or nowhere")
        elif not entry.is_file():
            notices.append(f"Leaving out {relative}: it is no regular file")
        else:
            files.append((check_path(relative), Path(os.path.realpath(entry.path))))
            _check_count(files, folder, "leave some out in .dockerignore")
    if not files:
        raise FailedPrecondition(f"{folder} holds no files to build from", reason="MISSING_FILE", path=folder)
    return Collected(sorted(files), notices)


def _walk(root: Path, ignoring: Ignoring | None) -> list[tuple[str, os.DirEntry[str]]]:
    """Returns relative path and entry of everything that is no folder, links not followed."""
    found = []
    pending = [""]
    while pending:
        inside = pending.pop()
        try:
            entries = list(os.scandir(root / inside))
        except OSError as error:
            raise FailedPrecondition(
                f"cannot read the folder {root / inside}: {error.strerror}", reason="UNREADABLE", path=root / inside
            ) from error
        for entry in entries:
            relative = f"{inside}/{entry.name}" if inside else entry.name
            if ignoring is not None and entry.name == ".git":
                continue
            if entry.is_dir(follow_symlinks=False):
                if ignoring is None or not ignoring.covers(relative):
                    pending.append(relative)
            elif ignoring is None or relative in _ALWAYS or not ignoring.matches(relative):
                found.append((relative, entry))
    return found


def _leads_inside(root: Path, entry: os.DirEntry[str]) -> bool:
    target = Path(os.path.realpath(entry.path))
    return target.is_relative_to(root) and target.exists()


def _file(path: Path) -> Path:
    """Returns where a file really lies. Raises InvalidArgument ``NOT_A_FILE`` unless it is a regular one."""
    real = Path(os.path.realpath(path))
    mode = real.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a named pipe, a socket or a device"
        raise InvalidArgument(f"{path} is {kind}; only regular files can be stored", reason="NOT_A_FILE", path=path)
    return real


def _check_count(files: Sequence[tuple[str, Path]], folder: Path, remedy: str) -> None:
    if len(files) > MAX_FILES:
        raise InvalidArgument(
            f"{folder} holds more than {MAX_FILES} files; {remedy}",
            reason="TOO_MANY_FILES",
            limit=MAX_FILES,
            path=folder,
        )
