"""What the ``rm`` commands say."""

from __future__ import annotations

from typing import Any

import click

from noronha.cli.target import Target


def help_with_files(what: str) -> str:
    """Returns the help of a command that removes what has files, which says when their room on the disk is free."""
    return f"""Remove {what} and all of its files.

    Nobody gets the files any more. The room they took becomes free when the mesh is told to collect garbage, a day or
    more after they were sent:

    \b
    grpcurl -plaintext -unix ~/.nha/mesh/mesh.sock noronha.v1.Store/CollectGarbage

    More of that, also for a mesh of several servers, is in services/README.md under "Room on the disk".
    """


def report(target: Target, removed: dict[str, Any], key: str) -> None:
    """Shows what was removed: a document for machines, ``Removed …`` lines for people."""
    if target.output != "text":
        target.present(removed, key)
        return
    for label, value in removed.items():
        if value not in ([], ""):
            click.echo(f"{label}: {', '.join(value) if isinstance(value, list) else value}")
