"""Builds without containers: a snapshot of the source, and an environment from its requirements, made by uv.

Below ``<root>/builder``: ``sources/<hex>`` and ``environments/<hex>`` as ``noronha.chassis.places`` says, shared by all
builds that need the same; ``recipes/<hex>`` points from what an environment is to hold to the environment that does;
``uses/<hex>`` says what each build keeps; ``wheels`` holds our own code; ``work`` what is on its way.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import sys
from collections import deque
from pathlib import Path, PurePosixPath

import uv

from noronha.builder import commands, dockerfile, folders, indexes, requirements, wheel
from noronha.builder.backend import Job, Log, Made, Tree
from noronha.builder.requirements import Requirements
from noronha.chassis import places
from noronha.chassis.together import together
from noronha.rpc.chunks import digest_of
from noronha.rpc.errors import FailedPrecondition
from noronha.v1.build_pb2 import Artifact, Source
from noronha.v1.file_pb2 import File

OURS = ("ipykernel", "gunicorn")
"""What tasks need in an environment beside our own wheel: the kernel, and the server of predictions.

Without bounds, so that what a project pins, itself or by what it requires, is what it gets.
"""

_RECIPE = 2
"""Raised when environments of the same requirements have to be made anew."""

_READERS = 8
"""Files of a source that are fetched at once."""


class VenvBackend:
    """Makes virtual environments and source snapshots in the mesh's state folder."""

    origins = frozenset({int(Source.LOCAL), int(Source.GIT)})

    def __init__(self, root: Path) -> None:
        """Takes the folder of the mesh's state; what is below ``builder`` there belongs to this object alone."""
        self._root = root
        self._own = root / "builder"
        self._uv = ""
        self._wheel: tuple[Path, str] | None = None
        self._making: dict[str, asyncio.Lock] = {}
        # Held while a folder is found, or put in its place, and its use written down; and while unused ones go.
        self._settling = asyncio.Lock()

    async def open(self) -> None:
        """Makes the folders and removes what earlier attempts left half-way, their processes first."""
        self._uv = str(uv.find_uv_bin())
        for name in ("sources", "environments", "recipes", "uses", "wheels", "work"):
            (self._own / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        left = list((self._own / "work").iterdir())
        if left:
            await commands.end_marked(*(path.name for path in left))
            for path in left:
                await asyncio.to_thread(folders.remove, path)

    async def close(self) -> None:
        """Leaves everything as it is."""

    async def build(self, job: Job, log: Log) -> Made:
        """Makes the snapshot and the environment of a job; see the port."""
        if job.tree is None:
            raise FailedPrecondition("there is no source to build from", reason="NO_SOURCE")
        work = self._own / "work" / job.run
        try:
            with folders.disk(self._own):
                work.mkdir()
                return await self._build(job, job.tree, work, log)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.forget(job.reference)))
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(folders.remove, work))

    async def references(self) -> list[str]:
        """Returns the references of all builds that keep something."""
        return [use["reference"] for use in self._uses()]

    async def forget(self, reference: str) -> None:
        """Removes the snapshot and the environment that only this reference kept."""
        async with self._settling:
            self._use(reference).unlink(missing_ok=True)
            used = {digest for use in self._uses() for digest in (use["source"], use["environment"])}
            unused: list[Path] = []
            for kind in ("sources", "environments"):
                for folder in (self._own / kind).iterdir():
                    if digest_of(folder.name) not in used:
                        unused.append(folders.set_aside(folder, self._own / "work"))
            for pointer in (self._own / "recipes").iterdir():
                known = folders.read_json(pointer)
                if known is None or known["environment"] not in used:
                    pointer.unlink(missing_ok=True)
        for folder in unused:
            await asyncio.to_thread(folders.remove, folder)

    async def _build(self, job: Job, tree: Tree, work: Path, log: Log) -> Made:
        files = {file.path: file for file in tree.files}
        plan = await _plan(tree, files)
        wanted = await _requirements(plan, tree, files)
        notices = [*plan.notices, *wanted.notices]
        for notice in notices:
            log(f"notice: {notice}")
        source = await self._source(job, tree, plan.layout, files, work, log)
        environment, size = await self._environment(job, wanted, source, work, log)
        identity = folders.digest_of_json([source, environment])
        artifact = Artifact(
            id=digest_of(identity), source_digest=source, environment_digest=environment,
            python_version=platform.python_version(), size_bytes=size,
        )  # fmt: skip
        return Made(artifact, notices)

    async def _source(
        self, job: Job, tree: Tree, layout: dict[str, str], files: dict[str, File], work: Path, log: Log
    ) -> str:
        """Returns the digest of a snapshot laid out like this, made if there is none yet, and keeps it for the job."""
        content = [[path, files[name].digest, files[name].executable] for path, name in sorted(layout.items())]
        source = digest_of(folders.digest_of_json(content))
        folder = places.source_folder(self._root, source)
        async with self._making.setdefault(source, asyncio.Lock()):
            async with self._settling:
                if folder.is_dir():
                    self._keep(job, source, "")
                    log(f"source {source[7:19]}: {len(layout)} files, unchanged")
                    return source
            partial = work / "source"
            await _lay_out(tree, layout, files, partial)
            async with self._settling:
                folders.publish(partial, folder)
                self._keep(job, source, "")
            log(f"source {source[7:19]}: {len(layout)} files")
            return source

    async def _environment(self, job: Job, wanted: Requirements, source: str, work: Path, log: Log) -> tuple[str, int]:
        """Returns digest and size of an environment with what is wanted, made if there is none yet, and keeps it."""
        own, own_digest = await self._own_wheel()
        recipe = {
            "recipe": _RECIPE,
            "python": [sys.version, os.path.realpath(sys.executable)],
            "wheel": own_digest,
            "ours": OURS,
            "requirements": wanted.lines,
            "constraints": wanted.constraints,
            # A requirement that points into the project makes the environment depend on all of it.
            "source": source if wanted.local else "",
        }
        key = folders.digest_of_json(recipe)
        pointer = self._own / "recipes" / key
        async with self._making.setdefault(key, asyncio.Lock()):
            async with self._settling:
                known = None if job.build.no_cache else folders.read_json(pointer)
                if known and places.environment_python(self._root, known["environment"]).exists():
                    self._keep(job, source, known["environment"])
                    log(f"environment {known['environment'][7:19]}: unchanged")
                    return known["environment"], known["size"]
            environment = digest_of(folders.digest_of_json({**recipe, "run": job.run}))
            partial = await self._make(job, wanted, source, own, work, log)
            size = await asyncio.to_thread(folders.size, partial)
            async with self._settling:
                folders.publish(partial, places.environment_folder(self._root, environment))
                folders.write_json(pointer, {"environment": environment, "size": size}, work)
                self._keep(job, source, environment)
            log(f"environment {environment[7:19]}: {size / 1048576:.0f} MiB")
            return environment, size

    async def _make(self, job: Job, wanted: Requirements, source: str, own: Path, work: Path, log: Log) -> Path:
        partial = work / "environment"
        # Relocatable, because it is made beside its place and moved there once it is whole.
        venv = ["venv", "--quiet", "--no-project", "--relocatable", "--python", sys.executable, str(partial)]
        await self._run(venv, work, job, log)
        start = work
        if wanted.local:
            # Building a package writes beside its sources, and the snapshot is never written to.
            start = work / "scratch"
            await asyncio.to_thread(folders.copy_writable, places.source_folder(self._root, source), start)
        listed = start / f"requirements-{job.run}.txt"
        listed.write_text(wanted.text, encoding="utf-8")
        command = ["pip", "install", "--python", str(partial / "bin" / "python"), "--requirements", str(listed)]
        if wanted.constraints:
            constraints = start / f"constraints-{job.run}.txt"
            constraints.write_text("".join(f"{line}\n" for line in wanted.constraints), encoding="utf-8")
            command += ["--constraints", str(constraints)]
        if job.build.no_cache:
            command.append("--no-cache")
        await self._run([*command, *OURS], start, job, log)
        # Ours goes in last, in place of any that a requirement brought, and has no say in which versions there are.
        ours = ["pip", "install", "--python", str(partial / "bin" / "python"), "--no-deps", "--offline", str(own)]
        await self._run(ours, work, job, log)
        return partial

    async def _run(self, arguments: list[str], folder: Path, job: Job, log: Log) -> None:
        said: deque[str] = deque(maxlen=40)

        def hear(line: str) -> None:
            line = indexes.without_credentials(line).replace(f"-{job.run}.txt", ".txt")
            said.append(line)
            log(line)

        code = await commands.run(
            [self._uv, *arguments], folder=folder, environment=indexes.for_uv(os.environ), mark=job.run, log=hear
        )
        if code == 0:
            return
        if any("No space left on device" in line or "os error 28" in line for line in said):
            raise folders.no_space(self._own)
        raise FailedPrecondition(
            f"the requirements could not be installed: {_gist(said) or f'uv ended with {code}'} (see the build's log)",
            reason="REQUIREMENTS_FAILED", exit_code=code,
        )  # fmt: skip

    async def _own_wheel(self) -> tuple[Path, str]:
        """Returns the file of our own wheel and its digest; packed once for each run of the mesh."""
        if self._wheel is None or not self._wheel[0].exists():
            made = await asyncio.to_thread(wheel.make)
            path = self._own / "wheels" / made.digest / made.file_name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                folders.write(path, made.content, self._own / "work")
            self._wheel = path, made.digest
        return self._wheel

    def _use(self, reference: str) -> Path:
        return self._own / "uses" / folders.digest_of_json(reference)

    def _uses(self) -> list[dict[str, str]]:
        return [use for path in (self._own / "uses").iterdir() if (use := folders.read_json(path)) is not None]

    def _keep(self, job: Job, source: str, environment: str) -> None:
        use = {"reference": job.reference, "source": source, "environment": environment}
        folders.write_json(self._use(job.reference), use, self._own / "work" / job.run)


async def _plan(tree: Tree, files: dict[str, File]) -> dockerfile.Plan:
    everything = {f"{dockerfile.HOME}/{path}": path for path in files}
    listed = ["requirements.txt"] if "requirements.txt" in files else []
    if "Dockerfile" not in files:
        plan = dockerfile.Plan(image=everything, requirement_files=listed)
        also = "requirements.txt is installed" if listed else "there is no requirements.txt either"
        plan.notices.append(f"there is no Dockerfile: all files lie in {dockerfile.HOME}, and {also}")
        return plan
    plan = dockerfile.plan(await _text(tree, files["Dockerfile"]), files)
    if not plan.layout:
        plan.image.update(everything)
        plan.notices.append(f"the Dockerfile adds nothing to {dockerfile.HOME}: all files of the project lie there")
    if listed and not plan.requirement_files and not plan.requirements:
        plan.requirement_files = listed
        plan.notices.append("the Dockerfile installs no requirements: requirements.txt is installed")
    return plan


async def _requirements(plan: dockerfile.Plan, tree: Tree, files: dict[str, File]) -> Requirements:
    # The rules do not wait for bytes, so whatever a file may include is read first.
    texts: dict[str, str] = {}
    wanted = [*plan.requirement_files, *plan.constraint_files]
    while wanted:
        path = wanted.pop()
        if path not in texts and path in files:
            texts[path] = await _text(tree, files[path])
            folder = PurePosixPath(path).parent
            included = re.findall(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)", texts[path], re.MULTILINE)
            wanted += [os.path.normpath(folder / each) for each in included]

    def read(path: str) -> str:
        if path not in texts:
            raise FailedPrecondition(f"{path} is not in the project", reason="BAD_REQUIREMENTS", path=path)
        return texts[path]

    found = Requirements()
    for path in plan.requirement_files:
        requirements.add_file(found, path, read)
    for path in plan.constraint_files:
        requirements.add_constraints(found, path, read)
    for line, origin in plan.requirements:
        requirements.add_line(found, line, origin)
    return found


async def _text(tree: Tree, file: File) -> str:
    if file.size_bytes > requirements.MAX_FILE_BYTES:
        raise FailedPrecondition(
            f"{file.path} has {file.size_bytes} bytes; at most {requirements.MAX_FILE_BYTES} are read",
            reason="BAD_REQUIREMENTS", path=file.path,
        )  # fmt: skip
    return (await tree.read(file)).decode("utf-8", "replace")


async def _lay_out(tree: Tree, layout: dict[str, str], files: dict[str, File], target: Path) -> None:
    target.mkdir()
    names = iter(sorted(layout.items()))

    async def some() -> None:
        for path, name in names:
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            await tree.write(files[name], place)
            # Files are read-only, since builds share them; folders are not, so that a user can remove all of it.
            place.chmod(0o555 if files[name].executable else 0o444)

    await together(some() for _ in range(_READERS))


def _gist(said: deque[str]) -> str:
    """Returns what uv says went wrong, as one line."""
    lines = [re.sub(r"^[\W_]*\s", "", f" {line}").strip() for line in said]
    begin = next((index for index, line in enumerate(said) if re.match(r"\s*(?:\u00d7|error:)", line)), None)
    chosen = lines[begin:] if begin is not None else lines[-3:]
    chosen = [line for line in chosen if line and not line.startswith("hint:")]
    text = " ".join(chosen).removeprefix("error:").strip().rstrip(".")
    return text if len(text) <= 600 else f"{text[:597]}..."
