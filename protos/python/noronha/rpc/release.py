"""Which release of Noronha runs here."""

from __future__ import annotations


def own_version() -> str:
    """Returns the version of Noronha that is installed here, '0' where none is."""
    from importlib import metadata

    try:
        return metadata.version("noronha-dataops")
    except metadata.PackageNotFoundError:
        return "0"
