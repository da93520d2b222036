"""What a ``.dockerignore`` leaves out, in the sense that Docker gives its patterns."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from noronha.rpc.errors import FailedPrecondition, InvalidArgument


class Ignoring:
    """Patterns, the last match of which decides. A pattern that matches a folder matches everything in it."""

    def __init__(self, lines: list[str]) -> None:
        self._patterns: list[tuple[bool, re.Pattern[str]]] = []
        self._exceptions = False
        for number, line in enumerate(lines, 1):
            pattern = line.strip().lstrip("\ufeff")
            if line.startswith("#") or not pattern:
                continue
            exception = pattern.startswith("!")
            pattern = pattern[1:].strip() if exception else pattern
            pattern = posixpath.normpath(pattern).lstrip("/") if pattern else ""
            if not pattern or pattern == ".":
                continue  # a pattern for the whole folder has never had an effect in Docker
            self._patterns.append((exception, _compiled(pattern, number)))
            self._exceptions |= exception

    @classmethod
    def of(cls, folder: Path) -> Ignoring:
        """Reads the ``.dockerignore`` of a folder, which may have none. Raises InvalidArgument ``BAD_DOCKERIGNORE``."""
        try:
            return cls((folder / ".dockerignore").read_text(encoding="utf-8").splitlines())
        except (FileNotFoundError, IsADirectoryError):
            return cls([])
        except UnicodeDecodeError:
            raise InvalidArgument(
                f"{folder / '.dockerignore'} is not UTF-8 text; save it as such", reason="BAD_DOCKERIGNORE"
            ) from None
        except OSError as error:
            raise FailedPrecondition(
                f"cannot read {folder / '.dockerignore'}: {error.strerror}", reason="UNREADABLE"
            ) from error

    def matches(self, path: str) -> bool:
        """Says whether a relative path is left out, by itself or by a folder that it lies in."""
        parts = path.split("/")
        places = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        left_out = False
        for exception, pattern in self._patterns:
            if exception == left_out and any(pattern.fullmatch(place) for place in places):
                left_out = not exception
        return left_out

    def covers(self, folder: str) -> bool:
        """Says whether nothing in a folder can be taken, so that nobody needs to look into it."""
        return not self._exceptions and self.matches(folder)


def _compiled(pattern: str, number: int) -> re.Pattern[str]:
    """Translates a pattern: ``*`` and ``?`` stay within a part, ``**`` goes through any number, ``[…]`` is a class."""
    out = ""
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "*":
            if pattern[at : at + 1] == "*":
                at += 1
                if pattern[at : at + 1] == "/":
                    at += 1
                    out += "(?:.*/)?"
                else:
                    out += ".*"
            else:
                out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "[":
            end = pattern.find("]", at + 2 if pattern[at : at + 1] == "^" else at + 1)
            if end < 0:
                raise _bad(pattern, number)
            negated = pattern[at] == "^"
            inner = pattern[at + negated : end].replace("[", "\\[").replace("&", "\\&").replace("~", "\\~")
            out += f"(?!/)[{'^' if negated else ''}{inner}]"
            at = end + 1
        elif character == "\\":
            if at >= len(pattern):
                raise _bad(pattern, number)
            out += re.escape(pattern[at])
            at += 1
        else:
            out += re.escape(character)
    try:
        return re.compile(out, re.DOTALL)
    except re.error:
        raise _bad(pattern, number) from None


def _bad(pattern: str, number: int) -> InvalidArgument:
    return InvalidArgument(
        f"line {number} of .dockerignore is no pattern: {pattern!r}", reason="BAD_DOCKERIGNORE", line=number
    )
