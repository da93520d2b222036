"""Where things lie below the mesh's state folder that one service makes and another uses on the same machine.

Builder makes environments and source snapshots; Runner's processes run in them. A folder under its final name is whole:
it is made beside that name and moved there in one step.
"""

from __future__ import annotations

from pathlib import Path

from noronha.rpc.chunks import check_digest


def environment_folder(root: Path, digest: str) -> Path:
    """Returns the environment that ``Artifact.environment_digest`` names. Raises InvalidArgument ``BAD_DIGEST``."""
    return root / "builder" / "environments" / _hexadecimal(digest)


def environment_python(root: Path, digest: str) -> Path:
    """Returns that environment's interpreter; absent once no build needs it. Raises InvalidArgument ``BAD_DIGEST``."""
    return environment_folder(root, digest) / "bin" / "python"


def source_folder(root: Path, digest: str) -> Path:
    """Returns the snapshot that ``Artifact.source_digest`` names, laid out as ``/app`` is in an image; for copying.

    Raises InvalidArgument ``BAD_DIGEST``.
    """
    return root / "builder" / "sources" / _hexadecimal(digest)


def _hexadecimal(digest: str) -> str:
    return check_digest(digest).partition(":")[2]
