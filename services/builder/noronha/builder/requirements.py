"""Reads requirement files: pip's, and those that ``conda install --file`` takes.

Pure: files come from a function, the result is text that uv installs.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from noronha.rpc.errors import FailedPrecondition

MAX_FILE_BYTES = 1 << 20
"""Largest requirement file that is read."""

_OWN = re.compile(r"noronha[-_.]+dataops(?![A-Za-z0-9._-])", re.IGNORECASE)
_NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONDA = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*=\s*([A-Za-z0-9][A-Za-z0-9.*+!_-]*)(?:\s*=\s*[A-Za-z0-9._*-]+)?")
_NOT_FROM_PYPI = frozenset({"python", "pip"})

Read = Callable[[str], str]
"""Returns the text of a file by its path in the source. Raises FailedPrecondition when it is not there."""


@dataclass
class Requirements:
    """What an environment needs beside Noronha's own parts."""

    lines: list[str] = field(default_factory=list)
    """Requirements and options, one each, as uv reads them."""
    constraints: list[str] = field(default_factory=list)
    """Constraints, one each."""
    local: bool = False
    """Whether a line points into the source, so that the environment depends on all of it."""
    notices: list[str] = field(default_factory=list)
    """What was left out or changed, a line each."""

    @property
    def text(self) -> str:
        """The lines as a requirement file."""
        return "".join(f"{line}\n" for line in self.lines)


def add_file(found: Requirements, path: str, read: Read) -> None:
    """Adds a file and what it includes. Raises FailedPrecondition ``BAD_REQUIREMENTS``."""
    _add(found, path, read, constraint=False, seen=())


def add_constraints(found: Requirements, path: str, read: Read) -> None:
    """Adds a file of constraints. Raises FailedPrecondition ``BAD_REQUIREMENTS``."""
    _add(found, path, read, constraint=True, seen=())


def add_line(found: Requirements, line: str, origin: str) -> None:
    """Adds one requirement; ``origin`` says where it stands. Relative paths start at the project's top."""
    if _OWN.match(line):
        found.notices.append(
            f"{origin}: {line.split()[0]} is left out: the environment gets the version that runs the mesh"
        )
        return
    conda = _CONDA.fullmatch(line.partition(" #")[0].strip())
    name = _NAMED.match(line)
    if name and name.group().lower() in _NOT_FROM_PYPI:
        found.notices.append(
            f"{origin}: {line} is left out: the environment has the mesh's own Python, and no {name.group()} of its own"
        )
        return
    if conda:
        version = conda.group(2)
        exact = line.count("=") > 1 or "*" in version
        line = f"{conda.group(1)}=={version}" if exact else f"{conda.group(1)}=={version}.*"
    local = _local(line)
    if local is not None:
        editable, place = local
        path = posixpath.normpath(place.partition("[")[0])
        if path.startswith(("..", "/")):
            raise _bad(f"{origin}: {line} lies outside of the project")
        extras = place[len(place.partition("[")[0]) :]
        line = f"./{path}{extras}" if path != "." else f".{extras}"
        found.local = True
        if editable:
            found.notices.append(f"{origin}: {place} is installed as a copy, not for editing")
    found.lines.append(line)


def _local(line: str) -> tuple[bool, str] | None:
    """Returns, for a line that names a place in the source, whether it is to be editable, and the place; else None."""
    match = re.match(r"(?:-e|--editable)[\s=]+(.*)", line)
    place = (match.group(1) if match else line).strip()
    remote = re.match(r"[A-Za-z0-9+.-]+:", place) is not None
    if match and not remote:
        return True, place.removeprefix("file:")
    if not remote and (place.startswith(("./", "../", "/")) or place.partition("[")[0] in (".", "..")):
        return False, place
    return None


def _add(found: Requirements, path: str, read: Read, *, constraint: bool, seen: tuple[str, ...]) -> None:
    if path in seen:
        raise _bad(f"{path} includes itself")
    folder = posixpath.dirname(path)
    for number, line in _lines(read(path)):
        origin = f"{path} line {number}"
        include = re.match(r"(-r|--requirement|-c|--constraint)[\s=]*(\S.*)", line)
        if include:
            target = include.group(2).strip()
            if re.match(r"[A-Za-z]+://", target):
                raise _bad(f"{origin}: {target} is not in the project; put the file beside the others")
            target = posixpath.normpath(posixpath.join(folder, target))
            as_constraint = constraint or include.group(1) in ("-c", "--constraint")
            _add(found, target, read, constraint=as_constraint, seen=(*seen, path))
        elif constraint:
            if not _OWN.match(line):
                found.constraints.append(line)
        else:
            add_line(found, line, origin)


def _lines(text: str) -> list[tuple[int, str]]:
    """Returns the lines that say something, with their numbers: joined where continued, without comments."""
    joined: list[tuple[int, str]] = []
    open_line = ""
    start = 0
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        start = start or number
        if raw.rstrip().endswith("\\") and not raw.lstrip().startswith("#"):
            open_line += raw.strip()[:-1].strip() + " "
            continue
        line = re.sub(r"(^|\s)#.*$", "", open_line + raw.strip()).strip()
        if line:
            joined.append((start, line))
        open_line, start = "", 0
    if open_line.strip():
        joined.append((start, open_line.strip()))
    return joined


def _bad(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BAD_REQUIREMENTS")
