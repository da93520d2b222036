"""Folders appear whole, go away whatever may be written in them, and a full disk is named as one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from noronha.builder import folders
from noronha.rpc.errors import FailedPrecondition, NoronhaError, ResourceExhausted


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOSPC, ResourceExhausted, "NO_SPACE"),
        (errno.EDQUOT, ResourceExhausted, "NO_SPACE"),
        (errno.EROFS, FailedPrecondition, "STATE_DIR_READ_ONLY"),
        (errno.EACCES, FailedPrecondition, "STATE_DIR_READ_ONLY"),
    ],
)
def test_errors_of_the_disk_say_what_to_do(tmp_path: Path, number: int, kind: type[NoronhaError], reason: str) -> None:
    with pytest.raises(kind) as caught, folders.disk(tmp_path):
        raise OSError(number, "of the disk")
    assert caught.value.reason == reason


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), folders.disk(tmp_path):
        (tmp_path / "gone").read_bytes()


def test_a_folder_is_published_set_aside_and_removed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for number in range(2):  # the second takes the place of the first
        partial = work / "partial"
        (partial / "deep").mkdir(parents=True)
        (partial / "deep" / "file").write_text(str(number))
        (partial / "deep" / "file").chmod(0o444)
        folders.publish(partial, tmp_path / "place")
        assert (tmp_path / "place" / "deep" / "file").read_text() == str(number)
    away = folders.set_aside(tmp_path / "place", work)
    assert not (tmp_path / "place").exists()
    for folder in (away, *work.iterdir()):
        folders.remove(folder)
    assert list(work.iterdir()) == []
    folders.remove(tmp_path / "never")


def test_a_file_that_was_cut_short_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": ')
    assert folders.read_json(tmp_path / "x") is None
    assert folders.read_json(tmp_path / "never") is None
    folders.write_json(tmp_path / "x", {"a": 1}, tmp_path)
    assert folders.read_json(tmp_path / "x") == {"a": 1}
