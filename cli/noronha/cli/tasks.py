"""What ``train`` and ``depl`` share: environment variables and mounts as the contract takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from noronha.v1 import mount_pb2


def environment(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns the environment variables. Raises UsageError for one that is given twice."""
    found: dict[str, str] = {}
    for key, value in pairs:
        if key in found:
            raise click.UsageError(f"--env-var {key} is given twice")
        found[key] = value
    return found


def mounts(given: Sequence[tuple[str, str, bool]]) -> list[mount_pb2.Mount]:
    """Returns the mounts; a relative path that begins with ``.`` or ``~`` is made absolute."""
    from noronha.v1 import mount_pb2

    found = []
    for source, inside, read_only in given:
        if source.startswith((".", "~")):
            source = str(Path(source).expanduser().absolute())
        found.append(mount_pb2.Mount(source=source, target=inside, read_only=read_only))
    return found
