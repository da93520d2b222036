"""What the ``rm`` commands say."""

from __future__ import annotations

from typing import Any

import click

from noronha.cli.target import Target


def report(target: Target, removed: dict[str, Any], key: str) -> None:
    """Shows what was removed: a document for machines, ``Removed …`` lines for people."""
    if target.output != "text":
        target.present(removed, key)
        return
    for label, value in removed.items():
        if value not in ([], ""):
            click.echo(f"{label}: {', '.join(value) if isinstance(value, list) else value}")
