"""Which files make up a version, a dataset or a source."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from noronha.client import archive, packing
from noronha.client.ignoring import Ignoring
from noronha.rpc.errors import FailedPrecondition, InvalidArgument, NoronhaError, NotFound
from noronha.v1 import model_pb2

MEBIBYTE = 1 << 20


def spec(name: str, **fields: Any) -> model_pb2.FileSpec:
    return model_pb2.FileSpec(name=name, **fields)


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def paths(found: packing.Collected) -> list[str]:
    return [path for path, _ in found.files]


def refused(reason: str, work: Any) -> NoronhaError:
    with pytest.raises(NoronhaError) as raised:
        work()
    assert raised.value.reason == reason
    assert "\n" not in raised.value.message
    return raised.value


def test_a_definition_takes_its_files_and_leaves_the_others(tmp_path: Path) -> None:
    fill(tmp_path, "clf.pkl", "notes.txt", "sub/clf.pkl", ".hidden")
    found = packing.collect_files(tmp_path, [spec("clf.pkl"), spec("extra.bin", required=False)])
    assert paths(found) == ["clf.pkl"]
    others = "Leaving out what the definition does not name: 'notes.txt', 'sub'"
    assert found.notices == ["Ignoring absent file: extra.bin", others]
    fill(tmp_path, *(f"n{number}" for number in range(1000)), "a\nb")
    (notice,) = packing.collect_files(tmp_path, [spec("clf.pkl")]).notices
    assert notice.endswith("'a\\nb', 'n0', 'n1', 'n10', 'n100' and 998 more") and "\n" not in notice


def test_folders_without_a_file_are_not_told_as_left_out(tmp_path: Path) -> None:
    """Such as what a task's own temporary folder has for the mesh's folder to be mounted on."""
    fill(tmp_path, "clf.pkl", "deep/er/notes.txt")
    (tmp_path / "nha-demo" / ".nha" / "mesh").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "here").symlink_to(tmp_path / "deep")
    (notice,) = packing.collect_files(tmp_path, [spec("clf.pkl")]).notices
    assert notice == "Leaving out what the definition does not name: 'deep', 'links'"
    (tmp_path / "nha-demo" / ".nha" / "mesh" / "file").touch()
    (notice,) = packing.collect_files(tmp_path, [spec("clf.pkl")]).notices
    assert notice.endswith("'deep', 'links', 'nha-demo'")


def test_a_required_file_that_is_missing_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "other")
    error = refused("MISSING_FILE", lambda: packing.collect_files(tmp_path, [spec("clf.pkl")]))
    assert isinstance(error, FailedPrecondition)
    assert "clf.pkl" in error.message and str(tmp_path) in error.message


@pytest.mark.parametrize(
    "specs",
    [
        [spec("clf.pkl")],
        [spec("clf.pkl", required=False)],
        [spec("a.bin", required=False), spec("clf.pkl", required=True)],
    ],
)
def test_a_single_file_is_stored_under_the_name_of_the_definition(tmp_path: Path, specs: Any) -> None:
    fill(tmp_path, "model.bin")
    found = packing.collect_files(tmp_path / "model.bin", specs)
    assert found.files == [("clf.pkl", tmp_path / "model.bin")]
    assert "File 'model.bin' will be renamed to 'clf.pkl'" in found.notices


def test_no_renaming_is_told_where_there_is_none(tmp_path: Path) -> None:
    fill(tmp_path, "clf.pkl")
    assert packing.collect_files(tmp_path / "clf.pkl", [spec("clf.pkl")]).notices == []


@pytest.mark.parametrize("required", [True, False])
def test_a_single_file_for_several_definitions_is_refused(tmp_path: Path, required: bool) -> None:
    fill(tmp_path, "model.bin")
    specs = [spec("a", required=required), spec("b", required=required)]
    refused("MISSING_FILE", lambda: packing.collect_files(tmp_path / "model.bin", specs))


@pytest.mark.parametrize(("size", "fine"), [(0, True), (MEBIBYTE - 1, True), (MEBIBYTE, True), (MEBIBYTE + 1, False)])
def test_the_limit_of_a_size_is_exact(tmp_path: Path, size: int, fine: bool) -> None:
    (tmp_path / "clf.pkl").write_bytes(b"x" * size)
    specs = [spec("clf.pkl", max_mb=1)]
    for place in (tmp_path, tmp_path / "clf.pkl"):
        if fine:
            assert paths(packing.collect_files(place, specs)) == ["clf.pkl"]
        else:
            error = refused("FILE_TOO_LARGE", lambda place=place: packing.collect_files(place, specs))
            assert "clf.pkl" in error.message and str(size) in error.message


def test_a_huge_sparse_file_is_refused_without_being_read(tmp_path: Path) -> None:
    with open(tmp_path / "clf.pkl", "wb") as file:
        file.truncate(1 << 40)
    refused("FILE_TOO_LARGE", lambda: packing.collect_files(tmp_path, [spec("clf.pkl")]))


def test_without_a_definition_everything_is_taken_with_its_folders(tmp_path: Path) -> None:
    fill(tmp_path, "a", "sub/b", "sub/deep/c", ".hidden")
    found = packing.collect_files(tmp_path, [])
    assert paths(found) == [".hidden", "a", "sub/b", "sub/deep/c"]
    assert dict(found.files)["sub/deep/c"].read_text() == "sub/deep/c"


def test_without_a_definition_a_single_file_keeps_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    assert paths(packing.collect_files(tmp_path / "a", [])) == ["a"]


def test_an_empty_folder_or_none_is_said_so(tmp_path: Path) -> None:
    refused("MISSING_FILE", lambda: packing.collect_files(tmp_path, []))
    with pytest.raises(NotFound):
        packing.collect_files(tmp_path / "absent", [])


def test_a_definition_follows_links_to_files(tmp_path: Path) -> None:
    fill(tmp_path, "blobs/abc")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "clf.pkl").symlink_to("../blobs/abc")
    found = packing.collect_files(tmp_path / "snapshot", [spec("clf.pkl")])
    assert found.files == [("clf.pkl", tmp_path / "blobs" / "abc")]


def test_without_a_definition_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "secret", "folder/a")
    (tmp_path / "folder" / "inside").symlink_to("a")
    assert paths(packing.collect_files(tmp_path / "folder", [])) == ["a", "inside"]
    (tmp_path / "folder" / "outside").symlink_to("../secret")
    refused("LINK_LEADS_OUT", lambda: packing.collect_files(tmp_path / "folder", []))
    (tmp_path / "folder" / "outside").unlink()
    (tmp_path / "folder" / "loop").symlink_to(".")
    refused("LINK_LEADS_OUT", lambda: packing.collect_files(tmp_path / "folder", []))


@pytest.mark.parametrize("specs", [[spec("odd")], []])
def test_what_is_no_file_is_refused(tmp_path: Path, specs: Any) -> None:
    os.mkfifo(tmp_path / "odd")
    refused("NOT_A_FILE", lambda: packing.collect_files(tmp_path, specs))
    refused("NOT_A_FILE", lambda: packing.collect_files(tmp_path / "odd", specs))


def test_a_definition_that_means_a_folder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "clf.pkl/a")
    refused("NOT_A_FILE", lambda: packing.collect_files(tmp_path, [spec("clf.pkl")]))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "."])
def test_no_definition_leads_out(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "secret", "folder/a")
    with pytest.raises(InvalidArgument):
        packing.collect_files(tmp_path / "folder", [spec(name)])


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", b"\xff\xfe"])
def test_file_names_that_cannot_travel_are_refused(tmp_path: Path, name: Any) -> None:
    (tmp_path / "folder").mkdir()
    with open(os.path.join(os.fsencode(tmp_path / "folder"), os.fsencode(name)), "wb"):
        pass
    for work in (
        lambda: packing.collect_files(tmp_path / "folder", []),
        lambda: packing.collect_source(tmp_path / "folder"),
    ):
        with pytest.raises(InvalidArgument) as raised:
            work()
        assert raised.value.reason == "BAD_PATH"
        raised.value.message.encode()


def test_the_lightweight_store_needs_small_defined_files(tmp_path: Path) -> None:
    fill(tmp_path, "clf.pkl")
    refused("NOT_LIGHTWEIGHT", lambda: packing.collect_files(tmp_path, [], lightweight=True))
    refused("NOT_LIGHTWEIGHT", lambda: packing.collect_files(tmp_path, [spec("clf.pkl")], lightweight=True))
    refused("NOT_LIGHTWEIGHT", lambda: packing.collect_files(tmp_path, [spec("clf.pkl", max_mb=11)], lightweight=True))
    assert packing.collect_files(tmp_path, [spec("clf.pkl", max_mb=10)], lightweight=True).files


def test_a_file_that_changes_while_it_is_packed_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "log"
    target.write_bytes(b"x" * (64 << 20))  # long enough for the writer to have its turn meanwhile
    begun, stop = threading.Event(), threading.Event()

    def write() -> None:
        with open(target, "ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x" * 16)
                begun.set()

    def pack() -> None:
        with archive.packed([("log", target)], "v"):
            pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(60)
        refused("FILE_CHANGED", pack)
    finally:
        stop.set()
        writer.join()
    target.unlink()
    os.mkfifo(target)
    refused("NOT_A_FILE", pack)


def test_a_source_leaves_out_what_it_is_told_and_git(tmp_path: Path) -> None:
    fill(
        tmp_path, "Dockerfile", "train.ipynb", "data/big.csv", "data/keep.csv", ".git/config", "sub/.git/HEAD", "sub/x.pyc",
        "sub/x.py", ".env",
    )  # fmt: skip
    (tmp_path / ".dockerignore").write_text(
        "# data\ndata/*\n!data/keep.csv\n**/*.pyc\n.env\nDockerfile\n.dockerignore\n"
    )
    found = packing.collect_source(tmp_path)
    assert paths(found) == [".dockerignore", "Dockerfile", "data/keep.csv", "sub/x.py", "train.ipynb"]
    assert found.notices == []


def test_a_sources_links_and_sockets_are_left_out_with_a_notice(tmp_path: Path) -> None:
    fill(tmp_path, "outside", "home/a")
    home = tmp_path / "home"
    (home / "inside").symlink_to("a")
    (home / "leads-out").symlink_to("../outside")
    (home / "absolute").symlink_to("/etc/passwd")
    (home / "loop").symlink_to(".")
    (home / "dangling").symlink_to("nothing")
    os.mkfifo(home / "pipe")
    here = os.getcwd()
    os.chdir(home)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("sock")
    os.chdir(here)
    listener.close()
    found = packing.collect_source(home)
    assert paths(found) == ["a", "inside"]
    assert dict(found.files)["inside"] == home / "a"
    left_out = {notice.removeprefix("Leaving out ").partition(":")[0] for notice in found.notices}
    assert left_out == {"leads-out", "absolute", "loop", "dangling", "pipe", "sock"}


def test_a_source_of_too_many_files_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number in range(10_001):
        (tmp_path / "many" / str(number)).touch()
    error = refused("TOO_MANY_FILES", lambda: packing.collect_source(tmp_path))
    assert ".dockerignore" in error.message
    (tmp_path / ".dockerignore").write_text("many/1*\n")
    assert len(packing.collect_source(tmp_path).files) < 10_000


def test_a_source_that_is_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        packing.collect_source(tmp_path / "absent")
    fill(tmp_path, "file")
    refused("NOT_A_FOLDER", lambda: packing.collect_source(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    refused("MISSING_FILE", lambda: packing.collect_source(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("lines", "left_out", "taken"),
    [
        (["*.pyc"], ["a.pyc"], ["sub/a.pyc", "a.py"]),
        (["**/*.pyc"], ["a.pyc", "sub/a.pyc", "sub/deep/a.pyc"], ["a.py"]),
        (["*/temp*"], ["sub/temporary.txt", "sub/temp", "sub/temp/x"], ["temp", "a/b/temp"]),
        (["*/*/temp*"], ["a/b/temp"], ["a/temp"]),
        (["temp?"], ["tempa", "tempb"], ["temp", "tempaa"]),
        (["/foo/bar"], ["foo/bar", "foo/bar/x"], ["bar", "x/foo/bar"]),
        (["foo/bar/"], ["foo/bar/x"], ["foo/baz"]),
        (["  foo  "], ["foo"], ["bar"]),
        (["#foo"], [], ["foo", "#foo"]),
        (["", "."], [], ["foo"]),
        (["*.md", "!README.md"], ["a.md"], ["README.md"]),
        (["*.md", "!README*.md", "README-secret.md"], ["README-secret.md"], ["README.md"]),
        (["*.md", "README-secret.md", "!README*.md"], ["a.md"], ["README.md", "README-secret.md"]),
        (["*", "!src"], ["a", "b/c"], ["src/x", "src"]),
        (["**", "!src/**"], ["a"], ["src/x/y"]),
        (["foo/**"], ["foo/a", "foo/a/b"], ["foo", "xfoo/a"]),
        (["**/foo"], ["foo", "a/foo", "a/b/foo/x"], ["afoo"]),
        (["a/**/z"], ["a/z", "a/b/z", "a/b/c/z"], ["z", "az"]),
        (["[ab].txt"], ["a.txt", "b.txt"], ["c.txt"]),
        (["[^ab].txt"], ["c.txt"], ["a.txt", "/.txt"]),
        (["[a-c]x"], ["bx"], ["dx"]),
        ([r"\*.txt"], ["*.txt"], ["a.txt"]),
        (["a.b"], ["a.b"], ["axb"]),
        (["../x", "x/../y"], ["y"], ["x"]),
        (["a+(b)"], ["a+(b)"], ["aab"]),
    ],
)
def test_patterns_mean_what_docker_says(lines: list[str], left_out: list[str], taken: list[str]) -> None:
    ignoring = Ignoring(lines)
    for path in left_out:
        assert ignoring.matches(path), path
    for path in taken:
        assert not ignoring.matches(path), path


@pytest.mark.parametrize("line", ["[a", "a\\", "[b-a]"])
def test_a_line_that_is_no_pattern_is_named(line: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Ignoring(["fine", line])
    assert raised.value.metadata["line"] == "2"
