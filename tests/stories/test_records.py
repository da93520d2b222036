"""Models, datasets, versions and projects by the command: what it takes, what it refuses, what it asks."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from noronha.client import publish
from noronha.client.connection import Mesh, read_token
from noronha.rpc.errors import AlreadyExists

NAMES = ["a_b", "-a", "a--b", "a b", "x:y", "../../x", "", "a" * 65, "ａ", "a\n", "a/b"]


@pytest.fixture(autouse=True)
def _clean(user: Any) -> Iterator[None]:
    yield
    for project in user.nha("proj", "list", "-o", "name").split():
        user.nha("proj", "rm", "--name", project)
    for model in user.nha("model", "list", "-o", "name").split():
        user.nha("model", "rm", "--name", model)


def test_a_model_keeps_its_file_definitions_and_defaults(user: Any) -> None:
    answer = user.run("-s", "model", "new", "-n", "m", "-d", "d", "--model-file", '{"name": "a.pkl"}', check=True)
    assert "Creating model without a strict dataset files definition" in answer.stderr
    found = user.json("model", "info", "--name", "m")
    assert found["model_files"] == [{"name": "a.pkl", "desc": "", "required": True, "max_mb": 2048}]
    assert found["data_files"] == [] and found["desc"] == "d"
    text = user.nha("model", "info", "--name", "m")
    assert text.startswith("---\n") and "\nname: m\n" in f"\n{text}" and "data_files" not in text
    assert "ALREADY_EXISTS" in user.refused("model", "new", "-n", "m")
    assert user.run("model", "info", "--name", "nobody").returncode == 3


def test_an_update_changes_only_what_is_given(user: Any) -> None:
    user.nha("model", "new", "-n", "m", "-d", "first", "--model-file", '{"name": "a.pkl", "max_mb": 1}')
    user.nha("model", "update", "-n", "m", "--data-file", '{"name": "b.csv"}')
    found = user.json("model", "info", "--name", "m")
    assert found["desc"] == "first" and found["model_files"][0]["max_mb"] == 1
    user.nha("model", "update", "-n", "m", "--no-model-files")
    found = user.json("model", "info", "--name", "m")
    assert found["model_files"] == [] and found["data_files"][0]["name"] == "b.csv"
    user.nha("proj", "new", "-n", "p", "-d", "words", "-m", "m")
    user.nha("proj", "update", "-n", "p", "--git-repo", "https://host/repo")
    project = user.json("proj", "info", "-n", "p")
    assert (project["desc"], project["models"], project["git_repo"]) == ("words", ["m"], "https://host/repo")


def test_names_outside_the_grammar_are_refused_everywhere(user: Any) -> None:
    """Every command meets a third of the names, and every name a third of the commands; the contract's tests do it all."""
    user.nha("model", "new", "-n", "m")
    (user.cwd / "file").write_text("x")
    for number, arguments in enumerate((
        ("model", "new", "--name", "{}"),
        ("proj", "new", "--name", "{}"),
        ("ds", "new", "-m", "m", "--name", "{}", "-p", "file"),
        ("movers", "new", "-m", "m", "--name", "{}", "-p", "file"),
        ("ds", "new", "-m", "{}", "-n", "d", "-p", "file"),
        ("model", "info", "--name", "{}"),
        ("movers", "info", "-m", "m", "--name", "{}"),
        ("model", "update", "--name", "{}", "-d", "x"),
        ("ds", "update", "-m", "m", "--name", "{}", "-d", '{"a": 1}'),
        ("movers", "rm", "-m", "m", "--name", "{}"),
        ("movers", "list", "-m", "{}"),
        ("proj", "rm", "--name", "{}"),
    )):  # fmt: skip
        for name in NAMES[number % 3 :: 3]:
            answer = user.run("-s", *(name if each == "{}" else each for each in arguments))
            assert answer.returncode == 2 and "[BAD_NAME]" in answer.stderr, answer
            assert len(answer.stderr.splitlines()) == 1, "refused before anything else is said"
    assert user.nha("model", "list", "-o", "name") == "m\n"
    assert user.nha("ds", "list") == "No Dataset(s) found\n"


def test_datasets_and_versions_hold_what_was_given(user: Any) -> None:
    user.nha("model", "new", "-n", "m", "--data-file", '{"name": "a.csv", "max_mb": 1}', "--data-file",
             '{"name": "b.csv", "required": false}')  # fmt: skip
    folder = user.cwd / "data"
    folder.mkdir(exist_ok=True)
    (folder / "a.csv").write_bytes(b"x" * (1 << 20))
    (folder / "stray").write_text("not named")
    answer = user.run("-s", "ds", "new", "-m", "m", "-n", "d", "-p", str(folder), "-d", '{"n": 12345678901234567890}')
    assert answer.returncode == 0 and "Ignoring absent file: b.csv" in answer.stderr
    assert "Leaving out what the definition does not name: 'stray'\n" in answer.stderr
    found = user.json("ds", "info", "-m", "m", "-n", "d")
    assert [each["name"] for each in found["files"]] == ["a.csv"] and found["stored"] is True
    assert found["details"] == {"n": 12345678901234567890} and found["size_bytes"] == 1 << 20
    (folder / "a.csv").write_bytes(b"x" * ((1 << 20) + 1))
    assert "[FILE_TOO_LARGE]" in user.refused("ds", "new", "-m", "m", "-n", "large", "-p", str(folder))
    (folder / "a.csv").unlink()
    assert "[MISSING_FILE]" in user.refused("ds", "new", "-m", "m", "-n", "none", "-p", str(folder))
    os.mkfifo(folder / "a.csv")
    assert "[NOT_A_FILE]" in user.refused("ds", "new", "-m", "m", "-n", "pipe", "-p", str(folder))
    (folder / "a.csv").unlink()
    assert user.nha("ds", "list", "--model", "m") == "Listing Dataset(s):\nm:d\n"
    user.nha("ds", "update", "-m", "m", "-n", "d", "-d", '{"z": 1}')
    after = user.json("ds", "info", "-m", "m", "-n", "d")
    assert after["details"] == {"z": 1} and after["files"] == found["files"] and after["revision"] == 2
    removed = user.json("ds", "rm", "-m", "m", "-n", "d")
    assert removed == {"name": "d", "model": "m", "record": "removed", "files": "purged"}


FETCH = """
import sys
from noronha.client import transfer
from noronha.client.connect import connect
from noronha.v1 import metadata_pb2
with connect() as mesh:
    found = mesh.metadata.GetModelVersion(metadata_pb2.GetModelVersionRequest(name=f"models/m/versions/{sys.argv[1]}"))
    transfer.download(mesh.store, found.files, __import__("pathlib").Path(sys.argv[2]))
    print(found.revision)
"""


def _fetched(user: Any, version: str, folder: Path) -> tuple[int, dict[str, bytes]]:
    """Returns revision and contents of a version of model m, verified."""
    shutil.rmtree(folder, ignore_errors=True)
    answer = subprocess.run(
        [sys.executable, "-c", FETCH, version, str(folder)], env=user.env, cwd=user.cwd, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout), {each.name: each.read_bytes() for each in folder.iterdir()}


def test_an_overwriting_that_fails_leaves_what_was_there(user: Any) -> None:
    user.nha("model", "new", "-n", "m", "--model-file", '{"name": "a", "max_mb": 512}', "--model-file",
             '{"name": "b", "max_mb": 1}')  # fmt: skip
    folder = user.cwd / "version"
    folder.mkdir()
    old = {"a": b"old a", "b": b"x" * (1 << 20)}
    for name, content in old.items():
        (folder / name).write_bytes(content)
    overwriting = ("movers", "new", "-m", "m", "-n", "spoiled", "-p", str(folder), "-d", '{"new": true}')
    user.nha(*overwriting[:-2], "-d", '{"old": true}')
    before = user.json("movers", "info", "-m", "m", "-n", "spoiled")
    (folder / "a").write_bytes(b"new a")

    def large() -> None:
        (folder / "b").write_bytes(b"x" * ((1 << 20) + 1))

    for spoil, reason in (
        (large, "FILE_TOO_LARGE"), (lambda: None, "MISSING_FILE"), (lambda: os.mkfifo(folder / "b"), "NOT_A_FILE"),
        (lambda: (folder / "b").mkdir(), "NOT_A_FILE"), (lambda: (folder / "b").symlink_to("/dev/zero"), "NOT_A_FILE"),
    ):  # fmt: skip
        spoil()
        for compress in ((), ("-c",)):
            assert f"[{reason}]" in user.refused(*overwriting, *compress)
        (folder / "b").rmdir() if (folder / "b").is_dir() else (folder / "b").unlink(missing_ok=True)
        assert user.json("movers", "info", "-m", "m", "-n", "spoiled") == before
    (folder / "b").write_bytes(b"new b")
    with open(folder / "a", "wb") as sparse:
        sparse.truncate(400 << 20)
    staging = user.state_dir / "store" / "staging"
    process = subprocess.Popen(
        user.command("-s", *overwriting), env=user.env, cwd=user.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not any(each.is_file() for each in staging.rglob("*")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert user.json("movers", "info", "-m", "m", "-n", "spoiled") == before
    assert _fetched(user, "spoiled", user.cwd / "fetched") == (1, old)


def test_two_who_publish_one_name_at_once_never_mix(user: Any) -> None:
    user.nha("model", "new", "-n", "m")
    contents = []
    for number in range(3):
        folder = user.cwd / f"racer{number}"
        folder.mkdir()
        contents.append({each: os.urandom(200_000) for each in ("a", "b")})
        for name, content in contents[-1].items():
            (folder / name).write_bytes(content)
    racers = [
        subprocess.Popen(
            user.command("movers", "new", "-m", "m", "-n", "raced", "-p", f"racer{number}"), env=user.env, cwd=user.cwd,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    ended = [(each.communicate(timeout=60)[1], each.returncode) for each in racers]
    winners = [number for number, (_, code) in enumerate(ended) if code == 0]
    assert len(winners) == 1, ended
    for said, code in ended:
        assert code == 0 or (code in (2, 4) and "exist" in said and said.splitlines()[-1].startswith("Error: "))
    assert _fetched(user, "raced", user.cwd / "fetched") == (1, contents[winners[0]])


def test_all_who_overwrite_one_name_at_once_get_their_revision(user: Any) -> None:
    user.nha("model", "new", "-n", "m")
    for subject in ("movers", "ds"):
        racers = [
            subprocess.Popen(
                user.command("-s", subject, "new", "-m", "m", "-n", "shared", "-d", f'{{"by": {number}}}',
                             "--skip-upload"),
                env=user.env, cwd=user.cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]  # fmt: skip
        ended = [(each.communicate(timeout=60)[1], each.returncode) for each in racers]
        assert {code for _, code in ended} == {0}, ended
        told = [user.json(subject, "info", "-m", "m", "-n", f"shared@{each}") for each in range(1, 5)]
        assert sorted(each["details"]["by"] for each in told) == [0, 1, 2, 3]


def test_what_others_publish_meanwhile_is_asked_about_as_well(user: Any) -> None:
    """Somebody is faster twice: once while the name is free, once while the question is answered."""
    user.nha("model", "new", "-n", "m")
    (user.cwd / "clf.pkl").write_text("ours")
    address = user.env.get("NHA_MESH__ADDRESS", f"unix:{user.state_dir / 'mesh.sock'}")
    asked: list[int] = []

    def faster(_: Any = None) -> None:
        user.nha("movers", "new", "-m", "m", "-n", "v", "--skip-upload")

    def replace(existing: Any) -> bool:
        asked.append(existing.revision)
        if existing.revision == 1:
            faster()
        return existing.revision < 3

    files = publish.Files(user.cwd / "clf.pkl")
    with Mesh(address, token=read_token(user.env.get("NHA_MESH__TOKEN_FILE", ""))) as mesh:
        made = publish.model_version(mesh, "m", "v", files, replace=replace, notice=faster)
        assert (made.revision, asked) == (3, [1, 2])
        assert [each.path for each in made.files] == ["clf.pkl"]
        with pytest.raises(AlreadyExists, match="m:v exists"):
            publish.model_version(mesh, "m", "v", files, replace=replace)
    assert user.json("movers", "info", "-m", "m", "-n", "v")["revision"] == 3


def test_filters_that_would_find_nothing_by_mistake_are_refused(user: Any) -> None:
    for subject, path, hint in (
        ("model", "nme", "'name'"), ("train", "task.stat", "'task.state'"), ("train", "status.sate", "'status.state'"),
        ("movers", "metrics.acc", "known: name"), ("bvers", "tagg", "'tag'"), ("depl", "movers.nme", "'movers.name'"),
        ("ds", "files.pth", "'files.path'"), ("proj", "git_rep", "'git_repo'"),
    ):  # fmt: skip
        options = ("--proj", "p") if subject in ("train", "bvers", "depl") else ()
        if options:
            user.run("-s", "proj", "new", "-n", "p")
        line = user.refused(subject, "list", *options, "-f", json.dumps({path: "x"}))
        assert hint in line and line.endswith("[BAD_FILTER]"), line
    assert user.nha("movers", "list", "-f", '{"details.metrics.acc": {"$gt": 1}, "train.details.params.x": 1}')
    assert user.nha("train", "list", "--proj", "p", "-f", '{"task.state": "finished", "bvers.tag": "x", "_id": "p:t"}')


def test_records_without_files_and_names_that_are_drawn(user: Any) -> None:
    user.nha("model", "new", "-n", "m")
    answer = user.run("-s", "movers", "new", "-m", "m", "--skip-upload", "-o", "name", check=True)
    drawn = answer.stdout.strip().partition(":")[2]
    assert re.fullmatch(r"[a-z]+-[a-z]+-[a-z]+", drawn) and f"Using random name: {drawn}" in answer.stderr
    assert user.json("movers", "info", "-m", "m", "-n", drawn)["stored"] is False
    assert user.json("movers", "rm", "-m", "m", "-n", drawn)["files"] == "not_stored"


def test_a_used_name_is_overwritten_as_a_new_revision_only_when_told_so(user: Any) -> None:
    user.nha("model", "new", "-n", "m")
    (user.cwd / "clf.pkl").write_text("one")
    user.nha("movers", "new", "-m", "m", "-n", "told", "-p", "clf.pkl", "-d", '{"a": 1}')
    answer = user.run("movers", "new", "-m", "m", "-n", "told", "-p", "clf.pkl")
    assert answer.returncode == 2 and "[NO_TERMINAL]" in answer.stderr and "-s" in answer.stderr
    assert "ModelVersion exists; overwriting publishes revision 2, earlier ones stay" in answer.stderr
    assert user.json("movers", "info", "-m", "m", "-n", "told")["revision"] == 1
    (user.cwd / "clf.pkl").write_text("two")
    user.nha("movers", "new", "-m", "m", "-n", "told", "-p", "clf.pkl")
    newest = user.json("movers", "info", "-m", "m", "-n", "told")
    first = user.json("movers", "info", "-m", "m", "-n", "told@1")
    assert newest["revision"] == 2 and newest["details"] == {} and first["details"] == {"a": 1}
    assert newest["files"] != first["files"]
    assert user.nha("movers", "list") == "Listing Model Version(s):\nm:told\n"


def test_a_model_that_a_project_uses_stays_with_everything(user: Any) -> None:
    user.nha("model", "new", "-n", "m")
    user.nha("movers", "new", "-m", "m", "-n", "v", "--skip-upload")
    user.nha("proj", "new", "-n", "p", "-m", "m")
    assert "[IN_USE]" in user.refused("model", "rm", "--name", "m")
    assert user.nha("movers", "list", "-o", "name") == "m:v\n"
    user.nha("proj", "rm", "--name", "p")
    assert user.json("model", "rm", "--name", "m") == {
        "Removed Datasets": [], "Removed ModelVersions": ["v"], "Removed Model": "m",
    }  # fmt: skip


def test_lists_for_machines_and_for_people(user: Any) -> None:
    for number in range(12):
        user.nha("model", "new", "-n", f"m{number:02}", "-d", str(number % 2))
    assert user.nha("model", "list", "--limit", "2") == "Listing Model Record(s):\nm00\nm01\n"
    assert user.nha("model", "list", "--limit", "1", "--order-by", "name desc", "-o", "name") == "m11\n"
    assert [each["name"] for each in user.json("model", "list", "-f", '{"desc": "1"}')] == [
        f"m{number:02}" for number in range(1, 12, 2)
    ]
    table = user.nha("model", "list", "--limit", "1", "-o", "table").splitlines()
    assert table[0].split() == ["NAME", "CREATED", "MODIFIED"] and table[1].startswith("m00  ") and len(table) == 2
    expanded = user.nha("model", "list", "-e", "--limit", "2")
    assert expanded.startswith("Listing Model Record(s):\n---\n") and expanded.count("---\n") == 2
    assert json.loads(user.run("-s", "-o", "json", "model", "list", "--limit", "1").stdout)[0]["name"] == "m00"
    assert "$where" in user.refused("model", "list", "-f", '{"$where": "1"}')
    assert user.run("model", "list", "-f", "{").returncode == 2
    assert user.json("model", "list", "-f", '{"name": "nobody"}') == []


def test_the_working_project_by_option_then_folder_then_configuration(user: Any) -> None:
    home = user.cwd / "home"
    (home / "deep" / "er").mkdir(parents=True, exist_ok=True)
    elsewhere = user.home / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    user.nha("proj", "new", "-n", "here", "--home-dir", ".", cwd=home)
    user.nha("proj", "new", "-n", "other", "--home-dir", str(elsewhere))
    assert user.json("proj", "info", cwd=home)["home_dir"] == str(home)
    assert user.json("proj", "info", cwd=home / "deep" / "er")["name"] == "here"
    assert user.json("proj", "info", "--proj", "other", cwd=home)["name"] == "other"
    assert "[NO_WORKING_PROJECT]" in user.refused("proj", "info", cwd=user.home)
    configured = user.home / "configured"
    configured.mkdir(exist_ok=True)
    (configured / "nha.yaml").write_text("project:\n  working_project: other\n")
    assert user.json("proj", "info", cwd=configured)["name"] == "other"
    (home / "nha.yaml").write_text("project:\n  working_project: other\n")
    assert user.json("proj", "info", cwd=home)["name"] == "here"
    user.nha("proj", "new", "-n", "twin", "--home-dir", str(home))
    line = user.refused("proj", "info", cwd=home)
    assert "[AMBIGUOUS_PROJECT]" in line and "here, twin" in line
    assert user.run("-s", "proj", "new", "-n", "q", "--home-dir", "/nowhere").returncode == 2


def _at_a_terminal(user: Any, *arguments: str, keys: str) -> tuple[int, str]:
    """Runs ``nha`` at a terminal, answers its question, and returns its exit code and all it showed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        user.command(*arguments), cwd=user.cwd, env={**user.env, "TERM": "xterm"}, stdin=slave, stdout=slave,
        stderr=slave, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    shown, answered, deadline = b"", False, time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.2)[0]:
                # Python loses a Ctrl-C that comes in the instant before it reads; nobody presses that fast, but once more.
                if answered and keys == "\x03":
                    os.write(master, keys.encode())
                continue
            try:
                piece = os.read(master, 4096)
            except OSError:
                break
            shown += piece
            if not answered and b"[y/N]" in shown:
                os.write(master, keys.encode())
                answered = True
        return process.wait(10), shown.decode()
    finally:
        process.kill()
        os.close(master)


def test_no_aborts_and_changes_nothing_and_yes_goes_on(user: Any) -> None:
    user.nha("model", "new", "-n", "m", "-d", "words")
    code, shown = _at_a_terminal(user, "model", "rm", "--name", "m", keys="n\n")
    assert code == 1 and "Aborting..." in shown
    code, shown = _at_a_terminal(user, "model", "update", "-n", "m", "--model-file", '{"name": "a"}', keys="n\n")
    assert code == 1 and user.json("model", "info", "-n", "m")["model_files"] == []
    code, _ = _at_a_terminal(user, "proj", "new", "-n", "p", keys="y\n")
    assert code == 0 and user.json("proj", "info", "-n", "p")["home_dir"] == str(user.cwd)
    code, shown = _at_a_terminal(user, "model", "rm", "--name", "m", keys="\x03")
    assert code == 130 and "Traceback" not in shown
    code, shown = _at_a_terminal(user, "model", "rm", "--name", "m", keys="y\n")
    assert code == 0 and "Removed Model: m" in shown
