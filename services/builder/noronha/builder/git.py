"""Fetches one commit of a Git repository and exports its files, exactly as they were committed.

Nothing of the repository is run: no hooks, no filters, no submodules, and no transport but those named here.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import posixpath
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from noronha.builder import commands, indexes, sources
from noronha.rpc import chunks
from noronha.rpc.errors import FailedPrecondition, InvalidArgument
from noronha.v1.file_pb2 import File

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ABBREVIATED = re.compile(r"[0-9a-f]{7,40}")
_REFERENCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@-]{0,254}")
_SCP = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?([A-Za-z0-9][A-Za-z0-9.-]*):(?!//)(?!-)[^\s\\:]+")
_NOT_INHERITED = re.compile(r"NHA_|GIT_(?:DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|ALTERNATE|NAMESPACE|COMMON_DIR)")
_TIMEOUT = 1800.0


@dataclass
class Export:
    """One commit, laid out in a folder."""

    commit: str
    files: list[File] = field(default_factory=list)
    """Sorted by path."""
    notices: list[str] = field(default_factory=list)


def check_reference(reference: str) -> str:
    """Returns the branch, tag or commit. Raises InvalidArgument ``BAD_REFERENCE`` for what cannot be one."""
    if reference and (
        not _REFERENCE.fullmatch(reference) or ".." in reference or "//" in reference or "@{" in reference
        or reference.endswith(("/", ".", ".lock"))
    ):  # fmt: skip
        raise InvalidArgument(
            f"{reference[:80]!r} is no branch, tag or commit", reason="BAD_REFERENCE",
            violations=[("build.source.git_reference", "is no branch, tag or commit")],
        )  # fmt: skip
    return reference


def check_repository(repository: str, allowed: Sequence[str]) -> str:
    """Returns the transport of a repository's URL: https, ssh or file.

    ``allowed`` are the folders below which local repositories may lie. Raises InvalidArgument ``BAD_REPOSITORY``.
    """
    shown = indexes.without_credentials(repository)[:120]

    def bad(why: str) -> InvalidArgument:
        return InvalidArgument(
            f"repository {shown!r} {why}", reason="BAD_REPOSITORY", violations=[("build.source.git_repository", why)]
        )

    if not repository or len(repository) > 512 or re.search(r"[\x00-\x20\x7f\\#]", repository):
        raise bad("must be a URL of 1 to 512 characters without spaces, backslashes and fragments")
    if repository.startswith("/"):
        return _local(repository, allowed, bad)
    if _SCP.fullmatch(repository) and "://" not in repository:
        return "ssh"
    try:
        parts = urlsplit(repository)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise bad("is no URL") from None
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise bad("must have three slashes: file:///folder")
        return _local(parts.path, allowed, bad)
    if parts.scheme not in ("https", "ssh"):
        raise bad("must begin with https://, ssh:// or file:///, or be written user@host:path")
    if parts.password or (parts.username and parts.scheme == "https"):
        raise bad("holds credentials; let git find them, in a credential helper or in ssh's agent")
    if not host or host.startswith("-") or parts.path.startswith("/-") or (parts.username or "").startswith("-"):
        raise bad("has no host, or one that begins with '-'")
    return parts.scheme


def _local(path: str, allowed: Sequence[str], bad: Callable[[str], InvalidArgument]) -> str:
    real = os.path.realpath(path)
    for folder in allowed:
        top = os.path.realpath(os.path.expanduser(folder))
        if real == top or real.startswith(top.rstrip("/") + "/"):
            return "file"
    raise bad("is a folder of the mesh's machine that mesh.allowed_mounts does not allow")


async def export(
    repository: str, reference: str, target: Path, *, transport: str, mark: str, log: Callable[[str], None]
) -> Export:
    """Exports a commit's files to ``target``, which is made, and returns what it is.

    ``repository`` and ``reference`` have passed the checks above; an empty reference means the default branch. Raises
    FailedPrecondition ``GIT_NOT_INSTALLED``, ``GIT_FAILED``, ``REFERENCE_NOT_FOUND``; InvalidArgument
    ``TOO_MANY_FILES``.
    """
    program = shutil.which("git")
    if program is None:
        raise FailedPrecondition("git is not installed where the builder runs; install it", reason="GIT_NOT_INSTALLED")
    if transport == "https":
        await _check_host(urlsplit(repository).hostname or "")
    target.mkdir()
    clone = _Clone(program, target / "repository", transport, mark, log)
    commit = await clone.fetch(repository, reference)
    log(f"commit {commit}")
    found = Export(commit)
    await clone.lay_out(commit, target / "files", found)
    await asyncio.to_thread(shutil.rmtree, target / "repository")
    return found


async def _check_host(host: str) -> None:
    """Refuses hosts whose address belongs to the machine's own surroundings, where no repository can be."""
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return  # git says it better
    for answer in answers:
        address = ipaddress.ip_address(str(answer[4][0]).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            raise FailedPrecondition(
                f"{host} is no host that a repository can be on", reason="BAD_REPOSITORY", host=host
            )


class _Clone:
    """A repository of our own that holds what one build fetched."""

    def __init__(self, program: str, folder: Path, transport: str, mark: str, log: Callable[[str], None]) -> None:
        self._program = program
        self._folder = folder
        self._mark = mark
        self._log = log
        inherited = {
            name: value for name, value in os.environ.items()
            if not _NOT_INHERITED.match(name)
        }  # fmt: skip
        self._environment = {
            "GIT_SSH_COMMAND": "ssh -o BatchMode=yes", **inherited, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true",
            "SSH_ASKPASS": "true", "GIT_ALLOW_PROTOCOL": transport, "LC_ALL": "C",
        }  # fmt: skip

    async def fetch(self, repository: str, reference: str) -> str:
        """Fetches what a reference names and returns its commit."""
        self._folder.mkdir()
        await self._git("init", "--quiet", "--bare", "--template=", ".")
        listed = await self._git("ls-remote", "--quiet", "--", repository, what="the repository could not be read")
        heads: dict[str, str] = {}
        for line in listed.decode("utf-8", "replace").splitlines():
            commit, _, name = line.partition("\t")
            if _COMMIT.fullmatch(commit):
                heads[name] = commit
        for name in (f"refs/heads/{reference}", f"refs/tags/{reference}") if reference else ("HEAD",):
            if name in heads:
                return await self._fetch(repository, name)
        if _COMMIT.fullmatch(reference):
            try:
                return await self._fetch(repository, reference)
            except FailedPrecondition:
                self._log(f"{reference} cannot be fetched alone; fetching all branches and tags")
        if _ABBREVIATED.fullmatch(reference):
            everything = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            await self._live("fetch", "--quiet", "--no-recurse-submodules", "--", repository, *everything)
            try:
                return await self._commit(reference)
            except FailedPrecondition:
                pass
        what = f"has no branch, tag or commit {reference!r}" if reference else "is empty"
        raise FailedPrecondition(f"the repository {what}", reason="REFERENCE_NOT_FOUND", reference=reference)

    async def _fetch(self, repository: str, name: str) -> str:
        await self._live(
            "fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--", repository, name
        )
        return await self._commit("FETCH_HEAD")

    async def _commit(self, name: str) -> str:
        answer = await self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        return answer.decode().strip()

    async def lay_out(self, commit: str, target: Path, found: Export) -> None:
        """Writes the files of a commit below ``target`` and describes them in ``found``."""
        target.mkdir()
        listed = await self._git("ls-tree", "-r", "-z", "--full-tree", commit)
        entries: dict[str, tuple[str, str]] = {}
        for row in listed.split(b"\0"):
            if not row:
                continue
            head, _, raw = row.partition(b"\t")
            mode, kind, identity = head.decode().split()
            path = raw.decode("utf-8", "surrogateescape")
            if kind == "commit":
                found.notices.append(f"submodule {path} is left out")
                continue
            entries[chunks.check_path(path)] = mode, identity
        if len(entries) > chunks.MAX_FILES:
            raise sources.too_many()
        links = {path for path, (mode, _) in entries.items() if mode == "120000"}
        await self._write(target, entries, found)
        for path in sorted(links):
            self._follow(target, path, links, found)
        found.files.sort(key=lambda file: file.path)

    async def _write(self, target: Path, entries: dict[str, tuple[str, str]], found: Export) -> None:
        process = await asyncio.create_subprocess_exec(
            self._program, "cat-file", "--batch", cwd=self._folder,
            env={**self._environment, commands.MARK: self._mark},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            for path, (mode, identity) in entries.items():
                process.stdin.write(f"{identity}\n".encode())
                await process.stdin.drain()
                head = (await process.stdout.readline()).split()
                if len(head) != 3:
                    raise FailedPrecondition(f"git could not read {path}", reason="GIT_FAILED", path=path)
                remaining = size = int(head[2])
                place = target / path
                place.parent.mkdir(parents=True, exist_ok=True)
                digest = hashlib.sha256()
                with open(place, "xb") as out:
                    while remaining:
                        piece = await process.stdout.read(min(remaining, 1 << 20))
                        if not piece:
                            raise FailedPrecondition(
                                f"git stopped while reading {path}", reason="GIT_FAILED", path=path
                            )
                        remaining -= len(piece)
                        digest.update(piece)
                        out.write(piece)
                await process.stdout.readexactly(1)
                if mode != "120000":
                    found.files.append(
                        File(
                            path=path,
                            digest=chunks.digest_of(digest.hexdigest()),
                            size_bytes=size,
                            executable=mode == "100755",
                        )
                    )
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _follow(self, target: Path, path: str, links: set[str], found: Export) -> None:
        """Replaces a symbolic link to a file of the same commit by that file; leaves others out."""
        place = target / path
        aim = place.read_bytes().decode("utf-8", "surrogateescape")
        pointed = posixpath.normpath(posixpath.join(posixpath.dirname(path), aim))
        place.unlink()
        source = next((file for file in found.files if file.path == pointed), None)
        if aim.startswith("/") or pointed.startswith("..") or pointed in links or source is None:
            found.notices.append(f"symbolic link {path} is left out: it leads to no file of the repository")
            return
        shutil.copyfile(target / pointed, place)
        found.files.append(
            File(path=path, digest=source.digest, size_bytes=source.size_bytes, executable=source.executable)
        )

    def _command(self, *arguments: str) -> list[str]:
        return [
            self._program, "-c", "http.followRedirects=false", "-c", "core.hooksPath=/dev/null",
            "-c", "gc.auto=0", *arguments,
        ]  # fmt: skip

    async def _git(self, *arguments: str, what: str = "git failed") -> bytes:
        code, answer = await commands.collect(
            self._command(*arguments), folder=self._folder, environment=self._environment, mark=self._mark
        )
        if code != 0:
            text = indexes.without_credentials(" ".join(answer.decode("utf-8", "replace").split()))
            raise FailedPrecondition(
                f"{what}: {text[:400] or f'git ended with {code}'}", reason="GIT_FAILED", exit_code=code
            )
        return answer

    async def _live(self, *arguments: str) -> None:
        said: list[str] = []

        def hear(line: str) -> None:
            line = indexes.without_credentials(line)
            said.append(line)
            self._log(line)

        work = commands.run(
            self._command(*arguments), folder=self._folder, environment=self._environment, mark=self._mark, log=hear
        )
        try:
            code = await asyncio.wait_for(work, _TIMEOUT)
        except asyncio.TimeoutError:
            raise FailedPrecondition(f"fetching took longer than {_TIMEOUT:.0f} s", reason="GIT_FAILED") from None
        if code != 0:
            raise FailedPrecondition(f"fetching failed: {' '.join(said)[-400:]}", reason="GIT_FAILED", exit_code=code)
