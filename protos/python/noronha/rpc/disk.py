"""What an error of a disk means to people: it is full, or it cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

from noronha.rpc.errors import FailedPrecondition, ResourceExhausted


def is_full(error: OSError) -> bool:
    """Says whether there is no room: on the disk, in what its user may have of it, or in one file of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def state_error(folder: Path, error: OSError) -> FailedPrecondition | ResourceExhausted:
    """Returns the error, in one line, for a folder of the mesh's state that cannot be written.

    It is ResourceExhausted ``NO_SPACE`` or FailedPrecondition ``STATE_DIR_READ_ONLY``.
    """
    if is_full(error):
        return ResourceExhausted(
            f"no space left for {folder}; free some, or set mesh.state_dir to another disk",
            reason="NO_SPACE", folder=folder,
        )  # fmt: skip
    return FailedPrecondition(
        f"cannot write to the mesh's folder {folder}: {error.strerror}; make it writable or set mesh.state_dir",
        reason="STATE_DIR_READ_ONLY", folder=folder,
    )  # fmt: skip
