"""Checks of fields that several resources have. What is wrong is collected, so that one answer tells all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from noronha.rpc.errors import InvalidArgument

MAX_TEXT = 512
"""Most characters of a description, a folder or a repository."""

MAX_LABELS = 64
MAX_LABEL = 128

_CREDENTIALS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*@")
_USER_ONLY = re.compile(r"^(?:ssh|git\+ssh)://[^/?#:@]+@")
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::")
"""How git is told to run a program of its own for a repository."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Violations:
    """What is wrong with a request."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, field: str, why: str) -> None:
        """Notes what is wrong with a field."""
        self._found.append((field, why))

    def text(self, field: str, value: str, limit: int = MAX_TEXT) -> None:
        """Checks the length of a text."""
        if len(value) > limit:
            self.add(field, f"has {len(value)} characters; at most {limit} are allowed")

    def labels(self, field: str, labels: Mapping[str, str]) -> None:
        """Checks labels."""
        if len(labels) > MAX_LABELS:
            self.add(field, f"has {len(labels)} labels; at most {MAX_LABELS} are allowed")
        for key, value in labels.items():
            if not 1 <= len(key) <= MAX_LABEL or len(value) > MAX_LABEL:
                self.add(
                    field, f"has the label {key[:40]!r}: keys have 1 to {MAX_LABEL} characters, values at most that"
                )
                return

    def git_repository(self, field: str, value: str) -> None:
        """Checks a repository's URL."""
        self.text(field, value)
        if _CREDENTIALS.match(value) and not _USER_ONLY.match(value):
            self.add(field, "holds credentials; keep them out of the URL")
        if value.startswith("-") or _HELPER.match(value) or _CONTROL.search(value):
            self.add(field, "is no URL of a repository")

    def docker_repository(self, field: str, value: str) -> None:
        """Checks a repository of images, which is named without a tag."""
        self.text(field, value)
        if ":" in value.rpartition("/")[2] or "@" in value:
            self.add(field, "must be registry/image without a tag or digest")
        if value.startswith("-") or _CONTROL.search(value) or " " in value:
            self.add(field, "is no repository of images")

    def folder(self, field: str, value: str) -> None:
        """Checks a folder of the client's."""
        self.text(field, value)
        if value and (not value.startswith("/") or _CONTROL.search(value)):
            self.add(field, "must be an absolute folder")

    def unique(self, field: str, values: Iterable[str]) -> None:
        """Checks that nothing comes twice."""
        seen: set[str] = set()
        for value in values:
            if value in seen:
                self.add(field, f"holds {value[:80]!r} twice")
                return
            seen.add(value)

    def settle(self, reason: str = "BAD_FIELD") -> None:
        """Raises InvalidArgument that lists everything noted, if anything was."""
        if self._found:
            field, why = self._found[0]
            more = f", and {len(self._found) - 1} more" if len(self._found) > 1 else ""
            raise InvalidArgument(f"{field} {why}{more}", reason=reason, violations=self._found, field=field)
