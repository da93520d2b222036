"""Builds by the command: what they record, what they leave out, what a failed one leaves behind."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _git(folder: Path, *arguments: str) -> str:
    words = ["git", "-c", "user.name=Some Body", "-c", "user.email=some@body", "-C", str(folder), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def builder(user: Any, make_project: Any) -> Iterator[Any]:
    """A user with a project under Git that is not built yet."""
    user.cwd = make_project(user.cwd / "project", {"train": ("a = 1", "print(a)")})
    (user.cwd / ".dockerignore").write_text("*.secret\n")
    (user.cwd / "token.secret").write_text("s")
    user.nha("proj", "new", "--name", "p", "--home-dir", ".")
    yield user


def test_a_build_records_the_commit_and_whether_it_was_changed(builder: Any) -> None:
    first = builder.json("proj", "build")
    assert (first["built_from"], first["git_version"], first["revision"]) == ("local", "", 1)
    _git(builder.cwd, "init", "-q")
    _git(builder.cwd, "add", ".")
    assert builder.json("proj", "build", "-t", "no-commit")["git_version"] == ""
    _git(builder.cwd, "commit", "-q", "-m", "x")
    commit = _git(builder.cwd, "rev-parse", "HEAD")
    clean = builder.json("proj", "build", "-t", "develop")
    assert (clean["git_version"], clean["git_dirty"]) == (commit, False)
    assert f"git_version: {commit}\n" in builder.nha("bvers", "info", "--tag", "develop")
    (builder.cwd / "notebooks" / "more.txt").write_text("more")
    dirty = builder.json("proj", "build", "-t", "develop", "--from-home", cwd=builder.cwd / "notebooks")
    assert (dirty["git_version"], dirty["git_dirty"], dirty["revision"]) == (commit, True, 2)
    assert builder.json("bvers", "info", "--tag", "develop@1")["git_dirty"] is False
    names = builder.nha("bvers", "list", "-o", "name").split()
    assert names == ["p:develop", "p:latest", "p:no-commit"]


def test_a_folder_inside_a_project_builds_all_of_it_unless_asked_otherwise(builder: Any) -> None:
    below = builder.cwd / "notebooks"

    def digest(tag: str) -> str:
        return str(re.search(r"source ([0-9a-f]+)", builder.nha("bvers", "logs", "--tag", tag))[1])

    builder.nha("proj", "build", "-t", "home")
    answer = builder.run("-s", "proj", "build", "-t", "whole", cwd=below, check=True)
    assert f"building from the project's home {builder.cwd}; --from-here builds this folder alone" in answer.stderr
    assert digest("whole") == digest("home")
    builder.nha("proj", "build", "-t", "part", "--from-here", cwd=below)
    answer = builder.run("-s", "proj", "build", "-t", "named", "--proj", "p", cwd=below, check=True)
    assert f"only {below} is built, which is inside the project's home; --from-home builds all of it" in answer.stderr
    assert digest("part") == digest("named") != digest("home")


def test_a_build_that_fails_leaves_the_one_before(builder: Any) -> None:
    assert builder.json("proj", "build", "-t", "kept")["revision"] == 1
    requirements = builder.cwd / "requirements.txt"
    requirements.write_text("this is no requirement ==\n")
    (builder.cwd / "Dockerfile").write_text("FROM noronhadataops/noronha:latest\nRUN pip install -r requirements.txt\n")
    try:
        answer = builder.run("proj", "build", "-t", "kept")
        assert answer.returncode == 9 and "Error: build p:kept failed: " in answer.stderr
        assert builder.json("bvers", "info", "--tag", "kept")["revision"] == 1
        assert builder.json("bvers", "info", "--tag", "kept@2")["task"]["state"] == "FAILED"
    finally:
        requirements.unlink()
        (builder.cwd / "Dockerfile").write_text("FROM noronhadataops/noronha:latest\nADD . ${APP_HOME}\n")


@pytest.mark.parametrize("tag", ["-a", "a b", "x:y", "../../x", "", "a" * 129, "ａ", "a\n", "a/b"], ids=ascii)
def test_tags_outside_dockers_grammar_are_refused(builder: Any, tag: str) -> None:
    answer = builder.run("proj", "build", "--tag", tag)
    assert answer.returncode == 2 and "[BAD_NAME]" in answer.stderr, answer


def test_sources_that_are_not_there_are_named(builder: Any) -> None:
    assert "[NO_SOURCE]" in builder.refused("proj", "build", "--from-git")
    assert "[NO_SOURCE]" in builder.refused("proj", "build", "--pre-built")
    builder.nha("proj", "update", "--name", "p", "--docker-repo", "registry/image")
    assert "[SOURCE_NOT_SUPPORTED]" in builder.refused("proj", "build", "--pre-built")
    builder.nha("proj", "new", "--name", "homeless")
    assert "[NO_SOURCE]" in builder.refused("proj", "build", "--proj", "homeless", "--from-home")
    assert "[NO_WORKING_PROJECT]" in builder.refused("proj", "build", cwd=builder.home)


def test_a_project_whose_pins_the_mesh_could_not_run_with_trains_and_serves(builder: Any, make_project: Any) -> None:
    versions = "from importlib.metadata import version\nfound = [version(name) for name in ('protobuf', 'grpcio', 'click')]"
    project = make_project(
        builder.home / "pinned",
        {
            "train": (
                "a = 41",
                f"{versions}\nprint(found)",
                "from noronha.tools.publish import Publisher\nfrom noronha.tools.shortcuts import tmp_path\n"
                "open(tmp_path('answer.txt'), 'w').write(str(a + 1))\nPublisher()(details={'found': found})",
            ),
            "online": (
                "a = 1",
                f"{versions}\nfrom noronha.tools.serving import OnlinePredict\nOnlinePredict(predict_func=lambda x: found)()",
            ),
            "lazy": (
                "a = 1",
                "from noronha.tools.serving import LazyModelServer\n"
                "LazyModelServer(predict_func=lambda x, model: model,"
                " load_model_func=lambda path: int(open(f'{path}/answer.txt').read()))()",
            ),
        },
    )
    (project / "requirements.txt").write_text("protobuf==3.20.3\ngrpcio==1.62.0\nclick==7.1.2\n")
    (project / "Dockerfile").unlink()
    builder.nha("model", "new", "--name", "pinned", "--model-file", '{"name": "answer.txt"}')
    builder.nha("proj", "new", "--name", "pinned", "--home-dir", ".", "--model", "pinned", cwd=project)
    builder.nha("proj", "build", cwd=project)
    pins = ["3.20.3", "1.62.0", "7.1.2"]
    builder.nha("train", "new", "--name", "t", "--nb", "notebooks/train", cwd=project)
    assert builder.json("movers", "info", "--name", "t", "--model", "pinned")["details"] == {"found": pins}
    for name, version, answer in (("online", "", pins), ("lazy", "&model_version=t", 42)):
        builder.nha("depl", "new", "--name", name, "--nb", f"notebooks/{name}", "--mv", "pinned:t", cwd=project)
        address = f"http://127.0.0.1:{builder.router_port}/predict?project=pinned&deploy={name}{version}"
        with urllib.request.urlopen(urllib.request.Request(address, data=b"[]", method="POST"), timeout=30) as said:
            assert json.load(said)["result"] == answer
        builder.nha("depl", "rm", "--name", name, cwd=project)


def test_removed_builds_are_gone(builder: Any) -> None:
    builder.nha("proj", "build", "-t", "gone")
    assert builder.nha("bvers", "rm", "--tag", "gone") == "Removed BuildVersion: p:gone\n"
    assert builder.run("-s", "bvers", "info", "--tag", "gone").returncode == 3
