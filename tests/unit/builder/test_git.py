"""Repositories are fetched by name and address alone, and exported exactly as committed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from noronha.builder import git
from noronha.rpc.errors import FailedPrecondition, InvalidArgument

IDENTITY = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": "/dev/null",
}  # fmt: skip


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def blob(folder: Path, name: str) -> bytes:
    return subprocess.run(["git", "cat-file", "blob", name], cwd=folder, check=True, capture_output=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits on main, a tag on the first, a branch that sorts before main."""
    folder = tmp_path / "repo.git"
    folder.mkdir()
    run(folder, "init", "--quiet", "--initial-branch", "main")
    (folder / "a.txt").write_text("one\r\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / ".gitattributes").write_text("*.txt text eol=lf export-ignore\n")
    (folder / "link").symlink_to("run.sh")
    (folder / "out").symlink_to("/etc/passwd")
    run(folder, "add", ".")
    run(folder, "-c", "core.autocrlf=false", "commit", "--quiet", "-m", "first")
    run(folder, "tag", "v1")
    run(folder, "branch", "aaa")
    (folder / "b.txt").write_text("two\n")
    run(folder, "add", ".")
    run(folder, "commit", "--quiet", "-m", "second")
    return folder


async def export(repository: str | Path, reference: str, target: Path) -> git.Export:
    url = str(repository)
    transport = git.check_repository(url, ["/"])
    return await git.export(
        url, git.check_reference(reference), target, transport=transport, mark=target.name, log=print
    )


async def test_the_default_branch_is_what_the_repository_says(repository: Path, tmp_path: Path) -> None:
    found = await export(repository, "", tmp_path / "x")
    assert found.commit == run(repository, "rev-parse", "main")
    assert [file.path for file in found.files] == [".gitattributes", "a.txt", "b.txt", "link", "run.sh"]


@pytest.mark.parametrize("reference", ["v1", "aaa", "commit", "short"])
async def test_branches_tags_and_commits_can_be_named(repository: Path, tmp_path: Path, reference: str) -> None:
    first = run(repository, "rev-parse", "v1")
    named = {"commit": first, "short": first[:9]}.get(reference, reference)
    found = await export(f"file://{repository}", named, tmp_path / "x")
    assert found.commit == first
    assert "b.txt" not in [file.path for file in found.files]


async def test_files_are_exactly_the_committed_ones(repository: Path, tmp_path: Path) -> None:
    found = await export(repository, "main", tmp_path / "x")
    by_path = {file.path: file for file in found.files}
    committed = blob(repository, "main:a.txt")
    assert (tmp_path / "x" / "files" / "a.txt").read_bytes() == committed
    assert by_path["a.txt"].digest == "sha256:" + hashlib.sha256(committed).hexdigest()
    assert by_path["run.sh"].executable
    assert by_path["link"].digest == by_path["run.sh"].digest
    assert any("symbolic link out" in notice for notice in found.notices)
    assert not (tmp_path / "x" / "repository").exists()


async def test_hooks_of_the_users_template_do_not_run(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    witness = tmp_path / "witness"
    for name in ("post-checkout", "reference-transaction", "post-merge"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {witness}\n")
        (hooks / name).chmod(0o755)
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(hooks.parent))
    await export(repository, "", tmp_path / "x")
    assert not witness.exists()


@pytest.mark.parametrize("reference", ["gone", "0" * 40, "abcdef0"])
async def test_a_reference_that_is_not_there_says_so(repository: Path, tmp_path: Path, reference: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await export(repository, reference, tmp_path / "x")
    assert caught.value.reason == "REFERENCE_NOT_FOUND"


async def test_a_repository_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="could not be read") as caught:
        await export(tmp_path / "nothing.git", "", tmp_path / "x")
    assert caught.value.reason == "GIT_FAILED"


async def test_an_empty_repository_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", "init", "--quiet")
    with pytest.raises(FailedPrecondition, match="is empty"):
        await export(tmp_path / "empty", "", tmp_path / "x")


@pytest.mark.parametrize(
    "url",
    [
        "", "ext::sh -c id", "ext::sh%20-c%20id", "http://h/r", "ftp://h/r", "gopher://h/r", "fd::17", "--upload-pack=id",
        "-oProxyCommand=id", "ssh://-oProxyCommand=id/r", "ssh://-x@h/r", "git@-host:r", "git@h:-r", "https://u:p@h/r",
        "https://token@h/r", "ssh://u:p@h/r", "https://h/r#frag", "https://h\\@i/r", "https://h/r\n", "file://h/r", "x", "h:\\r",
        "https:///r", "https://h:port/r", "relative/path", "../up",
    ],
)  # fmt: skip
def test_dangerous_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        git.check_repository(url, ["/"])
    assert caught.value.reason == "BAD_REPOSITORY"
    assert ":p@" not in str(caught.value)
    assert "token" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("https://host/a/b.git", "https"), ("https://host:8443/a", "https"), ("ssh://git@host:22/a.git", "ssh"),
        ("git@host:team/a.git", "ssh"), ("/srv/a.git", "file"), ("file:///srv/a.git", "file"),
    ],
)  # fmt: skip
def test_usual_addresses_are_taken(url: str, transport: str) -> None:
    assert git.check_repository(url, ["/"]) == transport


def test_local_repositories_lie_below_an_allowed_folder(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "out").symlink_to("/etc")
    allowed = [str(tmp_path / "allowed")]
    assert git.check_repository(f"{tmp_path}/allowed/r", allowed) == "file"
    for path in (f"{tmp_path}/r", f"{tmp_path}/allowed/../r", f"{tmp_path}/allowedtoo", f"{tmp_path}/allowed/out/r"):
        with pytest.raises(InvalidArgument, match="allowed_mounts"):
            git.check_repository(path, allowed)


@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "[::ffff:169.254.169.254]", "0.0.0.0", "[fe80::1]"])
async def test_addresses_of_the_machines_surroundings_are_refused(tmp_path: Path, host: str) -> None:
    url = f"https://{host}/r.git"
    assert git.check_repository(url, ["/"]) == "https"
    with pytest.raises(FailedPrecondition) as caught:
        await export(url, "", tmp_path / "x")
    assert caught.value.reason == "BAD_REPOSITORY"


@pytest.mark.parametrize(
    "reference", ["--upload-pack=id", "-x", "a..b", "a b", "a\nb", "a:b", "refs/heads/*", "a@{1}", "/a", "a/", "a.lock"]
)
def test_references_that_could_be_something_else_are_refused(reference: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        git.check_reference(reference)
    assert caught.value.reason == "BAD_REFERENCE"
