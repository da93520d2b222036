"""What every platform of Runner must do, and what only ``process:`` promises beyond that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import noronha.runner
import noronha.runner.backends.process as backend
from noronha.chassis import places
from noronha.rpc.errors import NoronhaError, NotFound
from noronha.runner.backend import PYTHON, Cause, Instance, Platform, Workload
from noronha.runner.backends.process import Processes
from noronha.runner.supervisor import cgroups, processes
from noronha.v1 import build_pb2, mount_pb2, resources_pb2

PATIENCE = 60


def workload(script: str, **fields: Any) -> Workload:
    """Returns a workload that runs a script of Python."""
    id = f"test-{secrets.token_hex(6)}"
    given = {"id": id, "resource": f"projects/p/trainings/{id}", "purpose": "nha-train", "grace": 5.0, **fields}
    return Workload(command=(PYTHON, "-c", textwrap.dedent(script)), **given)


class WorkloadsSuite:
    """``platform`` is a fixture; ``again(platform)`` opens the same platform anew, as after a crash of the mesh."""

    @pytest.fixture
    async def platform(self, tmp_path: Path) -> AsyncIterator[Platform]:
        raise NotImplementedError

    def again(self, platform: Platform) -> Platform:
        raise NotImplementedError

    async def until_started(self, platform: Platform, id: str) -> Instance:
        async with _patience():
            while True:
                instance = await platform.inspect(id)
                if instance is not None and (instance.handle or instance.exit):
                    assert instance.exit or 0 < instance.start_time <= time.time()
                    return instance
                await asyncio.sleep(0.02)

    async def ended(self, platform: Platform, id: str) -> Instance:
        async with _patience():
            instance = await platform.wait(id)
        assert instance.exit is not None
        return instance

    async def run(self, platform: Platform, script: str, **fields: Any) -> Instance:
        wanted = workload(script, **fields)
        await platform.start(wanted)
        return await self.ended(platform, wanted.id)

    async def test_a_workload_that_ends_well_ends_with_code_0(self, platform: Platform) -> None:
        instance = await self.run(platform, "print('made it')")
        assert (instance.exit.cause, instance.exit.code) == (Cause.ENDED, 0)
        assert b"made it" in await platform.read_log(instance.id)

    async def test_the_exit_code_is_told(self, platform: Platform) -> None:
        instance = await self.run(platform, "import sys; sys.exit(3)")
        assert (instance.exit.cause, instance.exit.code) == (Cause.ENDED, 3)
        assert "3" in instance.exit.message

    async def test_a_signal_that_ended_it_is_named(self, platform: Platform) -> None:
        instance = await self.run(platform, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert instance.exit.cause is Cause.KILLED
        assert "SIGKILL" in instance.exit.message

    async def test_a_segmentation_fault_is_named(self, platform: Platform) -> None:
        instance = await self.run(platform, "import ctypes; ctypes.string_at(0)")
        assert instance.exit.cause is Cause.KILLED
        assert "SIGSEGV" in instance.exit.message

    async def test_a_command_that_is_not_there_is_not_started(self, platform: Platform) -> None:
        wanted = replace(workload(""), command=("/nowhere/at/all",))
        await platform.start(wanted)
        instance = await self.ended(platform, wanted.id)
        assert instance.exit.cause is Cause.NOT_STARTED
        assert "/nowhere/at/all" in instance.exit.message or "No such file" in instance.exit.message

    async def test_stop_lets_it_end_by_itself(self, platform: Platform) -> None:
        wanted = workload("""
            import signal, sys, time
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
            print("waiting", flush=True)
            time.sleep(600)
        """)
        await platform.start(wanted)
        await self._until_logged(platform, wanted.id, b"waiting")
        await platform.stop(wanted.id)
        instance = await self.ended(platform, wanted.id)
        assert (instance.exit.cause, instance.exit.code) == (Cause.STOPPED, 7)

    async def test_stop_ends_by_force_what_does_not_listen(self, platform: Platform) -> None:
        wanted = workload("""
            import signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            print("deaf", flush=True)
            time.sleep(600)
        """)
        await platform.start(wanted)
        await self._until_logged(platform, wanted.id, b"deaf")
        await platform.stop(wanted.id, 0.2)
        instance = await self.ended(platform, wanted.id)
        assert instance.exit.cause is Cause.STOPPED
        assert "force" in instance.exit.message

    async def test_stop_right_after_start(self, platform: Platform) -> None:
        wanted = workload("import time; time.sleep(600)")
        await platform.start(wanted)
        await platform.stop(wanted.id, 0.2)
        assert (await self.ended(platform, wanted.id)).exit.cause is Cause.STOPPED

    async def test_stop_of_what_is_not_there_is_harmless(self, platform: Platform) -> None:
        await platform.stop("test-nothing")
        instance = await self.run(platform, "pass")
        await platform.stop(instance.id)
        assert (await platform.inspect(instance.id)).exit.cause is Cause.ENDED

    async def test_a_timeout_ends_it(self, platform: Platform) -> None:
        instance = await self.run(platform, "import time; time.sleep(600)", timeout=0.3, grace=0.2)
        assert instance.exit.cause is Cause.TIMED_OUT

    async def test_started_twice_it_runs_once(self, platform: Platform) -> None:
        wanted = workload("print('begun', flush=True); import time; time.sleep(0.5)")
        await asyncio.gather(*(platform.start(wanted) for _ in range(5)))
        again = self.again(platform)
        await asyncio.gather(*(again.start(wanted) for _ in range(3)))
        await asyncio.gather(self.ended(platform, wanted.id), self.ended(again, wanted.id))
        await platform.start(wanted)
        await again.start(wanted)
        await self.ended(again, wanted.id)
        assert (await platform.read_log(wanted.id)).count(b"begun") == 1
        await again.close()

    async def test_another_mesh_finds_what_runs_and_how_it_ended(self, platform: Platform) -> None:
        wanted = workload("import time; time.sleep(600)")
        await platform.start(wanted)
        before = await self.until_started(platform, wanted.id)
        await platform.close()
        again = self.again(platform)
        found = {each.id: each for each in await again.list()}
        assert found[wanted.id].resource == wanted.resource
        assert found[wanted.id].handle == before.handle
        assert found[wanted.id].exit is None
        await again.stop(wanted.id, 0.2)
        assert (await self.ended(again, wanted.id)).exit.cause is Cause.STOPPED
        third = self.again(again)
        assert (await third.inspect(wanted.id)).exit.cause is Cause.STOPPED

    async def test_environment_reaches_it_and_secrets_of_the_mesh_do_not(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NHA_MONGO__PSWD", "canary-in-a-setting")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-in-a-variable")
        wanted = workload(
            "import os, sys; print(sorted(os.environ.items()), sys.argv)",
            environment={"GIVEN": "a=b c\n$HOME"},
            token="canary-in-the-token",
        )
        await platform.start(wanted)
        await self.ended(platform, wanted.id)
        said = (await platform.read_log(wanted.id)).decode()
        assert "('GIVEN', 'a=b c\\n$HOME')" in said
        assert "canary" not in said

    async def test_removed_it_is_gone(self, platform: Platform) -> None:
        wanted = workload("import time; time.sleep(600)")
        await platform.start(wanted)
        await self.until_started(platform, wanted.id)
        async with _patience():
            await platform.remove(wanted.id)
        assert await platform.inspect(wanted.id) is None
        assert wanted.id not in [each.id for each in await platform.list()]
        await platform.remove(wanted.id)
        with pytest.raises(NotFound):
            await platform.wait(wanted.id)

    async def test_cleaned_it_is_still_known(self, platform: Platform) -> None:
        instance = await self.run(platform, "import sys; sys.exit(4)")
        await platform.clean(instance.id)
        assert (await platform.inspect(instance.id)).exit.code == 4

    async def test_bad_mounts_are_refused(self, platform: Platform, tmp_path: Path) -> None:
        for mount in (
            mount_pb2.Mount(source=str(tmp_path / "absent"), target="/elsewhere"),
            mount_pb2.Mount(source=str(tmp_path), target="/proc/x"),
            mount_pb2.Mount(source=str(tmp_path), target=sys.prefix),
        ):
            with pytest.raises(NoronhaError):
                await platform.check(workload("", mounts=(mount,)))

    async def _until_logged(self, platform: Platform, id: str, text: bytes) -> None:
        async with _patience():
            while text not in await platform.read_log(id):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    task = asyncio.current_task()
    assert task is not None
    handle = asyncio.get_running_loop().call_later(PATIENCE, task.cancel)
    try:
        yield
    finally:
        handle.cancel()


def opened(root: Path) -> Processes:
    return Processes("process:", root / "runner", root)


def remains(root: Path) -> list[int]:
    """Returns the processes that still belong to any task below a folder."""
    wanted = f"{processes.MARK}={root}".encode()
    also = f"{processes.MARK}_SUPERVISOR={root}".encode()
    found = []
    for pid in processes.all_pids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(each.startswith((wanted, also)) for each in variables):
            found.append(pid)
    return found


async def nothing_remains(root: Path) -> None:
    end = asyncio.get_running_loop().time() + 10
    while left := remains(root):
        assert asyncio.get_running_loop().time() < end, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        await asyncio.sleep(0.02)


class TestProcesses(WorkloadsSuite):
    binds = Processes

    @pytest.fixture
    async def platform(self) -> AsyncIterator[Platform]:
        # Not pytest's own folder: a task may not lie below what a test keeps for later runs.
        with tempfile.TemporaryDirectory(prefix="nha-test-") as name:
            self.root = Path(name)
            platform = opened(self.root)
            yield platform
            for each in await platform.list():
                await platform.remove(each.id)
            await nothing_remains(self.root)

    def again(self, platform: Platform) -> Platform:
        return opened(self.root)

    @pytest.mark.parametrize(
        "escape",
        [
            # Away from the group and the session, then orphaned.
            """
            if os.fork() == 0:
                os.setsid()
                if os.fork(): os._exit(0)
                away(); time.sleep(600)
            """,
            # The mark wiped from its environment as well.
            "subprocess.Popen(['/bin/sleep', '601'], env={}, start_new_session=True); away()",
            # One after the other, each ending as soon as the next one lives.
            """
            if os.fork() == 0:
                for _ in range(200):
                    if os.fork(): os._exit(0)
                    os.setsid()
                away(); time.sleep(600)
            """,
            # A tree of them.
            """
            first = os.getpid()
            for level in range(5):
                if os.fork() == 0: os.setsid()
            if os.getpid() != first:
                away(); time.sleep(600)
            """,
            # Without an end: each makes the next and leaves.
            """
            if os.fork() == 0:
                os.setsid(); away()
                while True:
                    if os.fork(): os._exit(0)
            time.sleep(0.3)
            """,
        ],
        ids=["session", "bare", "chain", "tree", "endless"],
    )
    @pytest.mark.parametrize("grouped", [True, False], ids=["cgroup", "subreaper"])
    async def test_nothing_gets_away(
        self, platform: Processes, escape: str, grouped: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        if not grouped:
            _without_groups(monkeypatch, tmp_path)
        script = """
            import os, subprocess, time
            mark = os.environ["TMPDIR"] + "/away"
            def away(): open(mark, "w").close()
        """
        waiting = """
            while not os.path.exists(mark): time.sleep(0.01)
            print("away", flush=True)
        """
        wanted = workload("".join(textwrap.dedent(part) + "\n" for part in (script, escape, waiting)))
        await platform.start(wanted)
        before = await self.until_started(platform, wanted.id)
        assert before.handle
        supervisor = json.loads((self.root / "runner/tasks" / wanted.id / "supervisor.json").read_text())["pid"]
        instance = await self.ended(platform, wanted.id)
        assert b"away" in await platform.read_log(wanted.id)
        assert instance.exit.cause in (Cause.ENDED, Cause.STOPPED)
        assert processes.descendants(supervisor) == []
        await nothing_remains(self.root)
        assert not [each for each in _sleepers() if each == "601"]

    async def test_a_supervisor_that_is_killed_takes_its_task_along(self, platform: Processes) -> None:
        wanted = workload("""
            import os, time
            if os.fork() == 0:
                os.setsid()
                if os.fork(): os._exit(0)
                print("away", flush=True)
            time.sleep(600)
        """)
        await platform.start(wanted)
        await self._until_logged(platform, wanted.id, b"away")
        again = opened(self.root)
        supervisor = json.loads((self.root / "runner/tasks" / wanted.id / "supervisor.json").read_text())["pid"]
        os.kill(supervisor, signal.SIGKILL)
        for each in (platform, again):
            assert (await self.ended(each, wanted.id)).exit.cause is Cause.LOST
        await nothing_remains(self.root)
        await again.start(wanted)
        assert (await again.inspect(wanted.id)).exit.cause is Cause.LOST, "lost work is not begun a second time"

    async def test_an_id_that_another_process_got_since_is_not_taken_for_ours(self, platform: Processes) -> None:
        wanted = workload("import time; time.sleep(600)")
        await platform.start(wanted)
        await self.until_started(platform, wanted.id)
        file = self.root / "runner/tasks" / wanted.id / "supervisor.json"
        said = json.loads(file.read_text())
        stranger = subprocess.Popen(["/bin/sleep", "600"])  # noqa: ASYNC220
        try:
            os.kill(said["pid"], signal.SIGKILL)
            file.write_text(json.dumps({**said, "pid": stranger.pid}))
            again = opened(self.root)
            await again.stop(wanted.id, 0)
            assert (await self.ended(again, wanted.id)).exit.cause is Cause.LOST
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    async def test_a_start_that_was_cut_short_is_made_good(self, platform: Processes) -> None:
        wanted = workload("print('begun')")
        assert platform._prepare(self.root / "runner/tasks" / wanted.id, wanted)  # and here the mesh is killed
        again = opened(self.root)
        assert (await again.inspect(wanted.id)).exit is None
        await again.start(wanted)
        assert (await self.ended(again, wanted.id)).exit.cause is Cause.ENDED
        assert (await again.read_log(wanted.id)).count(b"begun") == 1

    async def test_half_a_folder_is_begun_anew(self, platform: Processes) -> None:
        wanted = workload("print('anew')")
        folder = self.root / "runner/tasks" / wanted.id
        folder.mkdir()
        (folder / "token").write_text("half")
        await platform.start(wanted)
        assert (await self.ended(platform, wanted.id)).exit.code == 0

    async def test_two_tasks_never_share_a_temporary_file(self, platform: Processes) -> None:
        script = """
            import os, tempfile, time
            own = os.path.join(tempfile.gettempdir(), "same")
            literal = "/tmp/same" if os.path.ismount("/tmp") and os.path.ismount("/app") else own
            for path in (own, literal):
                open(path, "a").write("mine")
            time.sleep(0.3)
            print("".join(open(path).read() for path in (own, literal)))
        """
        several = [workload(script) for _ in range(2)]
        await asyncio.gather(*(platform.start(each) for each in several))
        for each in several:
            instance = await self.ended(platform, each.id)
            said = (await platform.read_log(each.id)).decode()
            assert instance.exit.code == 0, said
            assert said.strip() == "minemine" * 2, said
        assert not Path("/tmp/same").exists()

    async def test_its_folders_lie_where_notebooks_look_for_them(self, platform: Processes) -> None:
        wanted = workload("""
            import json, os
            for name in ("app", "data", "model", "tmp", "logs"):
                open(f"/{name}/written", "w").write(name)
        """)
        await platform.start(wanted)
        instance = await self.ended(platform, wanted.id)
        if not instance.bound:
            pytest.skip("this host allows no mount namespace")
        folder = self.root / "runner/tasks" / wanted.id
        for name in ("app", "data", "model", "tmp", "logs"):
            assert (folder / name / "written").read_text() == name
            assert not Path(f"/{name}/written").exists()

    async def test_the_source_is_a_copy(self, platform: Processes) -> None:
        digest = "sha256:" + "5" * 64
        snapshot = places.source_folder(self.root, digest)
        (snapshot / "notebooks").mkdir(parents=True)
        (snapshot / "notebooks" / "a.txt").write_text("as built")
        (snapshot / "script.sh").write_text("#!/bin/sh\n")
        (snapshot / "script.sh").chmod(0o555)
        (snapshot / "notebooks" / "a.txt").chmod(0o444)
        instance = await self.run(
            platform,
            """
            import os
            os.chdir(os.environ["APP_HOME"])
            assert os.access("script.sh", os.X_OK)
            with open("notebooks/a.txt", "r+") as file:
                assert file.read() == "as built"
                file.write("changed")
            os.remove("script.sh")
            """,
            artifact=build_pb2.Artifact(source_digest=digest),
        )
        assert instance.exit.code == 0, await platform.read_log(instance.id)
        assert (snapshot / "notebooks" / "a.txt").read_text() == "as built"
        assert (snapshot / "script.sh").exists()

    async def test_mounts_are_made_and_read_only_holds(self, platform: Processes, tmp_path: Path) -> None:
        if not await self._can_bind(platform):
            pytest.skip("this host allows no mount namespace")
        (tmp_path / "there").write_text("from the host")
        mounts = (
            mount_pb2.Mount(source=str(tmp_path), target="/nha-test-new/deep", read_only=True),
            mount_pb2.Mount(source=str(tmp_path), target="/data/extra"),
        )
        wanted = workload(
            """
            assert open("/nha-test-new/deep/there").read() == "from the host"
            try:
                open("/nha-test-new/deep/more", "w")
            except OSError as error:
                print(error.errno)
            open("/data/extra/more", "w").write("from the task")
            """,
            mounts=mounts,
        )
        await platform.check(wanted)
        await platform.start(wanted)
        instance = await self.ended(platform, wanted.id)
        assert instance.exit.code == 0, await platform.read_log(wanted.id)
        assert (await platform.read_log(wanted.id)).strip() == b"30"
        assert (tmp_path / "more").read_text() == "from the task"
        assert not Path("/nha-test-new").exists()

    async def test_where_no_mounts_can_be_made_they_are_refused_and_the_rest_runs(
        self, platform: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A supervisor that cannot unshare: the flag of an unknown namespace makes the call fail.
        _patched(monkeypatch, tmp_path, "namespace", "_CLONE_NEWNS = 0x00020000", "_CLONE_NEWNS = 0x7fffff00")
        plain = await self.run(platform, "print('runs')")
        assert plain.exit.code == 0
        assert plain.bound is False
        mounted = await self.run(
            platform, "print('runs')", mounts=(mount_pb2.Mount(source=str(tmp_path), target="/nha-test-new"),)
        )
        assert mounted.exit.cause is Cause.NOT_STARTED
        assert mounted.exit.reason == "MOUNT_NOT_POSSIBLE"

    async def test_limits_hold_or_are_said_not_to(self, platform: Processes) -> None:
        limits = resources_pb2.Resources(limits=resources_pb2.Resources.Amount(memory_mb=64, cpu_milli=500))
        instance = await self.run(platform, "x = bytearray(300 << 20); print(len(x))", resources=limits)
        assert instance.limits_applied is not None
        if instance.limits_applied:
            assert instance.exit.cause is Cause.OUT_OF_MEMORY
        else:
            assert instance.exit.code == 0

    async def test_without_limits_nothing_is_said_of_them(self, platform: Processes) -> None:
        assert (await self.run(platform, "pass")).limits_applied is None

    async def test_no_groups_are_left(self, platform: Processes) -> None:
        limits = resources_pb2.Resources(limits=resources_pb2.Resources.Amount(memory_mb=64))
        instance = await self.run(platform, "import os; os.fork()", resources=limits)
        started = json.loads((self.root / "runner/tasks" / instance.id / "started.json").read_text())
        assert not [each for each in started["groups"] if os.path.exists(each)]

    async def test_groups_that_nobody_looks_after_are_cleared_away(self, platform: Processes) -> None:
        wanted = workload("import time; time.sleep(600)")
        await platform.start(wanted)
        await self.until_started(platform, wanted.id)
        folder = self.root / "runner/tasks" / wanted.id
        groups = json.loads((folder / "started.json").read_text())["groups"]
        if not groups:
            pytest.skip("this host lets no groups be made")
        left = Path(groups[0]).with_name("noronha-test-left")
        left.mkdir()
        try:
            await self.run(platform, "pass")
            assert left.exists(), "one that was just made may be somebody's"
            _patched_age = cgroups._ABANDONED
            cgroups._ABANDONED = -1.0
            try:
                cgroups._sweep(str(left.parent))
            finally:
                cgroups._ABANDONED = _patched_age
            assert not left.exists()
            assert Path(groups[0]).exists(), "one that holds a process stays"
        finally:
            if left.exists():
                left.rmdir()

    async def test_the_token_is_in_a_file_of_its_owner_only(self, platform: Processes) -> None:
        wanted = workload("import time; time.sleep(600)", token="canary")
        await platform.start(wanted)
        await self.until_started(platform, wanted.id)
        folder = self.root / "runner/tasks" / wanted.id
        assignment = json.loads((folder / "assignment.json").read_text())
        assert Path(assignment["token_file"]).read_text() == "canary"
        assert stat.S_IMODE(os.stat(assignment["token_file"]).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for pid in remains(self.root):
            for name in ("cmdline", "environ"):
                assert b"canary" not in Path(f"/proc/{pid}/{name}").read_bytes()
        assert "canary" not in repr(wanted)

    async def test_its_files_are_removed_also_where_it_took_its_rights_away(self, platform: Processes) -> None:
        instance = await self.run(
            platform,
            """
            import os
            os.makedirs(os.environ["TMPDIR"] + "/a/b")
            open(os.environ["TMPDIR"] + "/a/b/c", "w")
            os.chmod(os.environ["TMPDIR"] + "/a/b", 0)
            os.chmod(os.environ["TMPDIR"] + "/a", 0)
            """,
        )
        await platform.clean(instance.id)
        assert not (self.root / "runner/tasks" / instance.id / "tmp").exists()
        await platform.remove(instance.id)
        assert not (self.root / "runner/tasks" / instance.id).exists()

    async def test_tasks_outlive_the_mesh(self) -> None:
        with tempfile.TemporaryDirectory(prefix="nha-test-") as name:
            root = Path(name)
            script = f"""
import asyncio, os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_workloads import opened, workload
async def main():
    platform = opened(Path({name!r}))
    wanted = workload("import time; time.sleep(1.5); print('outlived')", id="test-outlives")
    await platform.start(wanted)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
            done = subprocess.run([sys.executable, "-c", script], timeout=PATIENCE)  # noqa: ASYNC221
            assert done.returncode == -signal.SIGKILL
            platform = opened(root)
            assert (await platform.inspect("test-outlives")).exit is None
            await platform.start(workload("raise SystemExit('again')", id="test-outlives"))
            instance = await self.ended(platform, "test-outlives")
            assert (instance.exit.cause, instance.exit.code) == (Cause.ENDED, 0)
            assert (await platform.read_log("test-outlives")).strip() == b"outlived"
            await platform.remove("test-outlives")
            await nothing_remains(root)

    async def _can_bind(self, platform: Processes) -> bool:
        return (await self.run(platform, "pass")).bound


def test_a_group_that_cannot_be_made_is_no_group() -> None:
    assert cgroups.Group([]).add(os.getpid()) is False
    assert cgroups.Group([]).pids() == []
    assert cgroups.Group(["/nowhere"]).out_of_memory() is False


def _sleepers() -> list[str]:
    found = []
    for pid in processes.all_pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0] == b"/bin/sleep":
            found.append(command[1].decode())
    return found


def _patched(monkeypatch: pytest.MonkeyPatch, copy: Path, module: str, old: str, new: str) -> None:
    """Has supervisors run from a copy in which one line differs; they are processes of their own."""
    source = Path(noronha.runner.__path__[0])
    target = copy / "noronha" / "runner"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    file = target / "supervisor" / f"{module}.py"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    monkeypatch.setattr(backend, "_SUPERVISOR", str(target / "supervisor" / "__main__.py"))


def _without_groups(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    head = "def _hierarchies() -> list[_Hierarchy]:\n"
    _patched(monkeypatch, copy, "cgroups", head, head + "    return []\n")
