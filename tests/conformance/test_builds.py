"""What every backend of Builder has to do, and each backend bound to it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from noronha.builder.backend import Backend, Job, Made
from noronha.builder.backends.venv import VenvBackend
from noronha.builder.commands import MARK
from noronha.builder.sources import FolderTree
from noronha.chassis import places
from noronha.rpc.errors import NoronhaError
from noronha.v1.build_pb2 import Build, Source
from noronha.v1.file_pb2 import File

DOCKERFILE = """\
FROM noronhadataops/noronha:latest
ADD requirements.txt .
RUN bash -c "source ${CONDA_HOME}/bin/activate ${CONDA_VENV} && pip install -r requirements.txt && rm -f requirements.txt"
ADD . ${APP_HOME}
"""

PROJECT = {
    "Dockerfile": DOCKERFILE,
    "requirements.txt": "colorama==0.4.6\n",
    "notebooks/train.ipynb": "{}",
    "run.sh": "#!/bin/sh\n",
}


def tree(folder: Path, files: Mapping[str, str]) -> FolderTree:
    """Writes a project to a folder and returns it as a source."""
    found = []
    for path, content in sorted(files.items()):
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
        digest = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
        found.append(File(path=path, digest=digest, size_bytes=len(content.encode()), executable=path.endswith(".sh")))
    return FolderTree(folder, found)


def marked(run: str) -> list[psutil.Process]:
    """Returns the processes that belong to one attempt."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == run:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def answer_of(*command: str | Path, check: bool = True) -> str:
    """Runs a command and returns what it wrote."""
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout.strip()


class BuildsSuite:
    """The law of the port. Subclasses give ``backend`` and say what a result looks like from outside."""

    def content(self, made: Made) -> dict[str, str]:
        """Returns the files that tasks of a build find in their working directory, by path."""
        raise NotImplementedError

    def installed(self, made: Made, module: str) -> str:
        """Returns the version of a package that tasks of a build can import; '' when they cannot."""
        raise NotImplementedError

    def traces(self) -> dict[str, int]:
        """Returns what lies on the backend, counted by kind; equal before and after what leaves nothing behind."""
        raise NotImplementedError

    @pytest.fixture
    def make(self, backend: Backend, tmp_path: Path) -> Iterator[Any]:
        """Builds a project: ``await make(files, reference=…, no_cache=…, log=…, run=…)``."""

        async def build(
            files: Mapping[str, str] = PROJECT,
            *,
            reference: str = "",
            no_cache: bool = False,
            log: Any = None,
            run: str = "",
        ) -> Made:
            source = tree(tmp_path / "projects" / uuid.uuid4().hex, files)
            record = Build(name="projects/p/builds/latest", revision=1, no_cache=no_cache)
            record.source.origin = Source.LOCAL
            job = Job(
                reference or f"default projects/p/builds/latest@{uuid.uuid4().hex}",
                record,
                source,
                run or uuid.uuid4().hex,
            )
            return await backend.build(job, log or (lambda line: None))

        yield build

    async def test_tasks_find_files_packages_and_the_toolkit(self, make: Any) -> None:
        made = await make()
        assert self.content(made) == PROJECT
        assert self.installed(made, "colorama") == "0.4.6"
        assert self.installed(made, "noronha-dataops")
        assert self.installed(made, "ipykernel")
        assert self.installed(made, "gunicorn")
        assert made.notices == []
        assert made.artifact.id
        assert made.artifact.python_version

    async def test_the_same_project_gives_the_same_result_and_another_one_another(self, make: Any) -> None:
        first, again = await make(), await make()
        assert again.artifact == first.artifact
        other = await make({**PROJECT, "notebooks/train.ipynb": "{ }"})
        assert other.artifact.id != first.artifact.id
        assert self.content(other)["notebooks/train.ipynb"] == "{ }"

    async def test_builds_of_the_same_project_at_once_all_succeed(self, make: Any) -> None:
        made = await asyncio.gather(*(make() for _ in range(4)))
        assert len({each.artifact.id for each in made}) == 1

    async def test_without_caches_everything_is_made_anew(self, make: Any) -> None:
        first = await make()
        anew = await make(no_cache=True)
        assert anew.artifact.id != first.artifact.id
        assert self.installed(anew, "colorama") == "0.4.6"
        assert self.installed(first, "colorama") == "0.4.6"

    async def test_the_toolkit_of_this_mesh_replaces_what_requirements_name(self, make: Any) -> None:
        made = await make({**PROJECT, "requirements.txt": "noronha-dataops==1.6.8\ncolorama\n"})
        assert len(made.notices) == 1
        assert "noronha-dataops" in made.notices[0]
        assert not self.installed(made, "noronha-dataops").startswith("1.6")

    async def test_what_a_project_pins_is_what_it_gets(self, make: Any) -> None:
        """Also of what the mesh itself needs in other versions."""
        pins = {"protobuf": "3.20.3", "click": "7.1.2", "gunicorn": "20.1.0"}
        made = await make({**PROJECT, "requirements.txt": "".join(f"{name}=={pin}\n" for name, pin in pins.items())})
        assert {name: self.installed(made, name) for name in pins} == pins
        assert self.installed(made, "noronha-dataops") and self.installed(made, "ipykernel")

    async def test_an_environment_holds_nothing_of_the_mesh_but_its_toolkit(self, make: Any) -> None:
        made = await make()
        assert [self.installed(made, name) for name in ("grpcio", "protobuf", "click", "PyYAML")] == [""] * 4

    async def test_the_log_is_live(self, make: Any) -> None:
        lines: list[str] = []
        await make(log=lines.append)
        assert any("colorama==0.4.6" in line for line in lines)

    @pytest.mark.parametrize(
        ("files", "reason"),
        [
            ({**PROJECT, "requirements.txt": "colorama==99.0\n"}, "REQUIREMENTS_FAILED"),
            ({**PROJECT, "requirements.txt": "no-such-package-of-noronha-at-all\n"}, "REQUIREMENTS_FAILED"),
            ({**PROJECT, "requirements.txt": "this is not a requirement\n"}, "REQUIREMENTS_FAILED"),
            ({**PROJECT, "requirements.txt": "-r missing.txt\n"}, "BAD_REQUIREMENTS"),
            ({**PROJECT, "Dockerfile": "FROM noronhadataops/noronha\nADD missing .\n"}, "DOCKERFILE_FAILED"),
        ],
    )
    async def test_what_cannot_be_built_says_why_and_leaves_nothing(
        self, make: Any, files: dict[str, str], reason: str
    ) -> None:
        kept = await make()
        before = self.traces()
        with pytest.raises(NoronhaError) as caught:
            await make(files)
        assert caught.value.reason == reason
        assert "\n" not in caught.value.message
        assert self.traces() == before
        assert self.content(kept) == PROJECT

    async def test_a_cancelled_build_leaves_no_process_and_no_trace(self, make: Any, slow: dict[str, str]) -> None:
        before = self.traces()
        run = uuid.uuid4().hex
        lines: list[str] = []
        task = asyncio.create_task(make(slow, run=run, log=lines.append))
        await self.until(lambda: len(marked(run)) >= 3, task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert marked(run) == []
        assert self.traces() == before

    @pytest.fixture
    def slow(self) -> dict[str, str]:
        """A project whose installation starts processes that hide from their parents, and never ends."""
        setup = (
            "import os, subprocess, sys, time\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
            "time.sleep(600)\n"
        )
        toml = '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n[project]\nname = "slow"\nversion = "1"\n'
        return {
            "Dockerfile": DOCKERFILE, "requirements.txt": "./package\n", "package/pyproject.toml": toml, "package/slow.py": setup,
        }  # fmt: skip

    @staticmethod
    async def until(condition: Any, task: asyncio.Task[Any] | None = None, seconds: float = 60) -> None:
        """Waits until a condition holds, the task ends, or time is up; the first is wanted."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            if task is not None and task.done():
                task.result()
                raise AssertionError("the build ended")
            assert asyncio.get_running_loop().time() < deadline, "it did not come so far"
            await asyncio.sleep(0.05)

    async def test_what_one_build_alone_kept_is_removed_with_it(self, backend: Backend, make: Any) -> None:
        before = self.traces()
        one = await make(reference="default projects/p/builds/a@1")
        two = await make(reference="default projects/p/builds/b@1")
        assert sorted(await backend.references()) == ["default projects/p/builds/a@1", "default projects/p/builds/b@1"]
        await backend.forget("default projects/p/builds/a@1")
        assert self.content(two) == PROJECT
        assert self.installed(two, "colorama")
        await backend.forget("default projects/p/builds/b@1")
        assert await backend.references() == []
        assert self.traces() == before
        await backend.forget("default projects/p/builds/never@1")
        assert (await make()).artifact.source_digest == one.artifact.source_digest


class TestVenv(BuildsSuite):
    """``venv:`` keeps the law, and what it promises beyond."""

    binds = VenvBackend

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        self._root = tmp_path / "mesh"
        self._root.mkdir()
        return self._root

    @pytest.fixture
    async def backend(self, root: Path) -> AsyncIterator[Backend]:
        backend = VenvBackend(root)
        await backend.open()
        yield backend
        await backend.close()

    def content(self, made: Made) -> dict[str, str]:
        folder = places.source_folder(self._root, made.artifact.source_digest)
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    def installed(self, made: Made, module: str) -> str:
        python = places.environment_python(self._root, made.artifact.environment_digest)
        script = f"from importlib import metadata; print(metadata.version({module!r}))"
        return answer_of(python, "-I", "-c", script, check=False)

    def traces(self) -> dict[str, int]:
        own = self._root / "builder"
        return {
            kind: len(list((own / kind).iterdir())) for kind in ("sources", "environments", "recipes", "uses", "work")
        }

    async def test_commands_of_the_environment_run(self, make: Any) -> None:
        made = await make()
        folder = places.environment_folder(self._root, made.artifact.environment_digest)
        assert "gunicorn" in answer_of(folder / "bin" / "gunicorn", "--version")

    async def test_the_toolkit_is_the_running_code(self, make: Any) -> None:
        made = await make()
        python = places.environment_python(self._root, made.artifact.environment_digest)
        script = "import noronha.rpc.errors as e, noronha.tools.serving; print(e.__file__)"
        answer = answer_of(python, "-I", "-c", script)
        assert answer.startswith(str(self._root))
        ours = Path(sys.modules["noronha.rpc.errors"].__file__ or "")
        assert Path(answer).read_bytes() == ours.read_bytes()

    async def test_files_that_builds_share_cannot_be_written(self, make: Any) -> None:
        made = await make()
        folder = places.source_folder(self._root, made.artifact.source_digest)
        modes = {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in folder.rglob("*.*")}
        assert modes == {"run.sh": 0o555, "requirements.txt": 0o444, "notebooks/train.ipynb": 0o444}

    async def test_an_environment_whose_interpreter_is_gone_is_made_again(self, make: Any) -> None:
        made = await make()
        python = places.environment_python(self._root, made.artifact.environment_digest)
        python.unlink()
        python.symlink_to("/nowhere/python")
        again = await make()
        assert self.installed(again, "colorama") == "0.4.6"

    async def test_a_package_of_the_project_is_installed(self, make: Any) -> None:
        toml = '[project]\nname = "inner"\nversion = "2.5"\n[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        files = {"requirements.txt": "-e ./inner\n", "inner/pyproject.toml": toml, "inner/inner/__init__.py": "x = 1\n"}
        made = await make(files)
        assert self.installed(made, "inner") == "2.5"
        assert len(made.notices) == 2
        changed = await make({**files, "inner/inner/__init__.py": "x = 2\n"})
        assert changed.artifact.environment_digest != made.artifact.environment_digest

    async def test_a_conda_dockerfile_and_no_dockerfile_build_too(self, make: Any) -> None:
        conda = PROJECT["Dockerfile"].replace("pip install -r", "conda install --file")
        first = await make({**PROJECT, "Dockerfile": conda, "requirements.txt": "colorama=0.4.6\n"})
        assert self.installed(first, "colorama") == "0.4.6"
        bare = await make({"requirements.txt": "colorama==0.4.6\n", "a.py": ""})
        assert self.installed(bare, "colorama") == "0.4.6"
        assert "there is no Dockerfile" in bare.notices[0]

    async def test_an_unchanged_project_starts_no_process(self, make: Any, root: Path) -> None:
        await make()
        os.rename(root / "builder" / "wheels", root / "builder" / "wheels-away")
        backend = VenvBackend(root)  # as after a restart of the mesh
        await backend.open()
        backend._uv = "/nowhere/uv"
        lines: list[str] = []
        made = await make(log=lines.append)
        assert self.content(made) == PROJECT
        assert [line for line in lines if "unchanged" in line] == lines

    @pytest.mark.parametrize("moment", ["venv", "pip", "moved"])
    async def test_killed_at_any_step_nothing_half_is_visible_and_the_next_run_clears_up(
        self, root: Path, tmp_path: Path, moment: str, make: Any
    ) -> None:
        script = textwrap.dedent(
            """
            import asyncio, os, signal, sys
            sys.path.insert(0, sys.argv[3])
            from pathlib import Path
            from test_builds import PROJECT, tree
            from noronha.builder import commands, folders
            from noronha.builder.backend import Job
            from noronha.builder.backends.venv import VenvBackend
            from noronha.v1.build_pb2 import Build

            moment = sys.argv[4]
            publish, run, started = folders.publish, commands.run, []

            def published(partial, folder):
                publish(partial, folder)
                if moment == "moved" and "environments" in str(folder):
                    os.kill(os.getpid(), signal.SIGKILL)

            async def ran(command, **options):
                work = asyncio.ensure_future(run(command, **options))
                if moment == command[1]:
                    await asyncio.sleep(0.02 if moment == "venv" else 0.15)
                    os.kill(os.getpid(), signal.SIGKILL)
                return await work

            folders.publish, commands.run = published, ran

            async def main():
                backend = VenvBackend(Path(sys.argv[1]))
                await backend.open()
                job = Job("default projects/p/builds/k@1", Build(), tree(Path(sys.argv[2]), PROJECT), "killed")
                await backend.build(job, print)

            asyncio.run(main())
            """
        )
        answer = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script, root, tmp_path / "killed", Path(__file__).parent, moment],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert answer.returncode == -signal.SIGKILL, answer.stderr
        for folder in (root / "builder" / "environments").iterdir():
            answer_of(folder / "bin" / "python", "-I", "-c", "import colorama, ipykernel, noronha.tools")
        backend = VenvBackend(root)
        await backend.open()
        await self.until(lambda: not marked("killed"))
        assert list((root / "builder" / "work").iterdir()) == []
        assert self.installed(await make(reference="default projects/p/builds/k@1"), "colorama") == "0.4.6"
        await backend.forget("default projects/p/builds/k@1")
        assert self.traces()["environments"] == self.traces()["sources"] == 0

    @pytest.fixture
    def neighbour(self) -> Iterator[subprocess.Popen[bytes]]:
        """A process of another mesh's build."""
        process = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: uuid.uuid4().hex})
        yield process
        process.kill()
        process.wait()

    async def test_builds_of_other_meshes_are_left_alone(self, root: Path, neighbour: subprocess.Popen[bytes]) -> None:
        (root / "builder" / "work" / "killed").mkdir(parents=True)
        await VenvBackend(root).open()
        assert neighbour.poll() is None
