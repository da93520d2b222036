"""Builds by the command: what they record, what they leave out, what a failed one leaves behind."""

from __future__ import annotations

import subprocess
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


def test_removed_builds_are_gone(builder: Any) -> None:
    builder.nha("proj", "build", "-t", "gone")
    assert builder.nha("bvers", "rm", "--tag", "gone") == "Removed BuildVersion: p:gone\n"
    assert builder.run("-s", "bvers", "info", "--tag", "gone").returncode == 3
