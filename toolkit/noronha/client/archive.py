"""One archive of the files of a version or a dataset, for those that are kept compressed."""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from noronha.client import local_files


@contextlib.contextmanager
def packed(files: list[tuple[str, Path]], name: str) -> Iterator[tuple[str, Path]]:
    """Yields one tar.gz of files under its name, the same bytes for the same files whenever and by whomever it is made.

    Raises as ``local_files.opened``, and FailedPrecondition ``FILE_CHANGED`` for a file that changes meanwhile.
    """
    with tempfile.NamedTemporaryFile(prefix="nha-", suffix=".tar.gz") as target:
        with (
            gzip.GzipFile(filename="", fileobj=target, mode="wb", mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for path, source in sorted(files):
                with local_files.opened(source) as descriptor, open(descriptor, "rb", closefd=False) as content:
                    before = os.fstat(descriptor)
                    # Made from its size and mode alone: what else a file is, such as one of two names of one content,
                    # is nobody's business who unpacks it.
                    entry = tarfile.TarInfo(path)
                    entry.size, entry.mode = before.st_size, 0o755 if before.st_mode & 0o100 else 0o644
                    try:
                        archive.addfile(entry, content)
                    except OSError as error:
                        if error.errno is not None:
                            raise
                        raise local_files.changed(source) from error  # it ended before the size that it had
                    if local_files.state_of(os.fstat(descriptor)) != local_files.state_of(before):
                        raise local_files.changed(source)
        target.flush()
        yield f"{name}.tar.gz", Path(target.name)
