"""Kills parts of a mesh with SIGKILL at random points of real work, and checks what must hold afterwards.

Services are also frozen with SIGSTOP, for a moment or for longer than their leases, and go on as if nothing had been.
Promises checked after every kill:

- what was acknowledged is there, whole and right, and nothing that is listed has missing or wrong bytes;
- a command that failed can be typed again and then succeeds;
- every training and every build that is on record succeeds, whatever died beside it: what ran was found again, once;
- replicas that served go on serving, the same ones, unless the work replaced them;
- exactly the processes are left that stood there before the work;
- predictions go on while the mesh is down; only the proxy's own death interrupts them, and shortly.

``python tests/stories/kills.py --runs 200 --seed 7`` is the long run behind ``make soak``; its table goes to docs/soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SERVICES = ("metadata", "store", "builder", "runner", "router")
FROZEN = " frozen"
"""What a victim's name ends in that is stopped and continued instead of killed."""
MOMENT = 3.0
"""Seconds for which a service is frozen in a short run, and mostly in a long one."""
PAST_THE_LEASE = 70.0
"""Seconds after which every lease of a frozen service has run out: Runner's is 60 s."""
WAIT = 90.0
"""Seconds within which everything must have settled after a kill; a bound for hangs, not a measure."""


def until(condition: Callable[[], object], what: str, limit: float = WAIT) -> object:
    """Returns the first true answer of ``condition()``; raises AssertionError naming ``what`` when none comes in time."""
    deadline = time.monotonic() + limit
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {limit:.0f} s")
        time.sleep(0.05)


def free_port() -> int:
    """Returns a port of loopback that is free now and that the kernel gives to no outgoing connection.

    A client that keeps trying to reach a server that is down may be given that server's own port to call from, connect to
    itself, and so keep the server from coming back.
    """
    for _ in range(1000):
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _cell(source: str, *tags: str) -> dict[str, object]:
    return {
        "cell_type": "code", "execution_count": None, "outputs": [], "source": source,
        "metadata": {"tags": list(tags)} if tags else {},
    }  # fmt: skip


def write_notebook(path: Path, *cells: dict[str, object]) -> None:
    """Writes a notebook of these cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for number, each in enumerate(cells):
        each["id"] = f"cell-{number}"
    path.write_text(json.dumps(content))


TRAIN = """
from noronha.tools.publish import Publisher
from noronha.tools.shortcuts import tmp_path
with open(tmp_path('model.bin'), 'w') as file:
    file.write(content)
Publisher()(details={'content': content})
"""
PREDICT = """
from noronha.tools.serving import OnlinePredict
OnlinePredict(predict_func=lambda body: answer)()
"""


@dataclass
class World:
    """A mesh on a private home, with a project, a model and a deployment that is asked all the time."""

    home: Path
    env: dict[str, str]
    router_port: int
    target: str
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    acknowledged: dict[str, dict[str, str]] = field(default_factory=dict)
    """Dataset or version name to its files' digests by path, as they were acknowledged."""
    attempted: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """The same, for everything that was ever tried under a name."""

    @property
    def state(self) -> Path:
        """Folder of the mesh's state."""
        return self.home / "m"

    def command(self, *arguments: str) -> list[str]:
        """Returns a command line of ``nha`` without questions."""
        return [str(BIN / "nha"), "-s", *arguments]

    def nha(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs ``nha`` to its end."""
        answer = subprocess.run(
            self.command(*arguments), env=self.env, cwd=self.home / "project", capture_output=True, text=True,
            timeout=300, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and answer.returncode != 0:
            raise AssertionError(f"nha {' '.join(arguments)}: {answer.stdout[-1500:]} {answer.stderr[-1500:]}")
        return answer

    def start(self, *names: str) -> None:
        """Starts the mesh, or the named services of the five-process one, and waits until it answers."""
        if self.target == "embedded":
            self.nha("mesh", "up")
            return
        for name in names or SERVICES:
            peers = [f"--peer={peer}=127.0.0.1:{self.ports[peer]}" for peer in SERVICES if peer != name]
            (self.home / "addresses").mkdir(exist_ok=True)
            address = self.home / "addresses" / name
            address.unlink(missing_ok=True)

            def launch(name: str = name, peers: list[str] = peers, address: Path = address) -> bool:
                process = subprocess.Popen(
                    [sys.executable, "-m", "noronha.chassis", name, "--listen", f"127.0.0.1:{self.ports[name]}",
                     *peers, "--address-file", str(address)],
                    env=self.env, stdin=subprocess.DEVNULL, start_new_session=True,
                    stdout=(self.home / f"{name}.out").open("ab"), stderr=subprocess.STDOUT,
                )  # fmt: skip
                self.processes[name] = process
                until(lambda: address.exists() or process.poll() is not None, f"{name} to answer")
                return address.exists()

            try:
                until(launch, f"{name} to start", 30)
            except AssertionError as error:
                raise AssertionError(f"{error}: {(self.home / f'{name}.out').read_text()[-500:]}") from None

    def mesh_process(self) -> int | None:
        """Returns the process id of the embedded mesh, None when it is down."""
        try:
            process = int((self.state / "metadata" / "lock").read_text())
        except (OSError, ValueError):
            return None
        return process if psutil.pid_exists(process) else None

    def envoys(self) -> list[int]:
        """Returns the process ids of this mesh's proxy."""
        found = []
        for process in psutil.process_iter(["cmdline", "name"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.state) in line and "envoy" in (process.info["name"] or ""):
                found.append(process.pid)
        return found

    def connect(self):
        """Returns a connection for looking at records and bytes."""
        from noronha.client.connection import Mesh

        if self.target == "embedded":
            return Mesh(f"unix:{self.state / 'mesh.sock'}", whole=True)
        return Mesh(f"127.0.0.1:{self.ports['metadata']}", token=(self.state / "owner.token").read_text().strip())

    def family(self) -> dict[int, str]:
        """Returns the processes of this world by id: all that were started with its home, however they call themselves."""
        found = {}
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.info["cmdline"] or ())
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if str(self.home) in line or process.environ().get("HOME") == str(self.home):
                    found[process.pid] = line[:200]
        return found

    def end(self) -> list[str]:
        """Ends everything, removes the home and returns what would not end when it was told to."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                self.command("mesh", "down", "--stop-tasks"), env=self.env, cwd=self.home, capture_output=True,
                timeout=120, check=False,
            )  # fmt: skip
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()
        with contextlib.suppress(AssertionError):
            until(lambda: not self.family(), "everything to end", 20)
        left = self.family()
        for number in left:
            with contextlib.suppress(psutil.Error):
                psutil.Process(number).kill()
        shutil.rmtree(self.home, ignore_errors=True)
        return list(left.values())


@contextlib.contextmanager
def world(target: str) -> Iterator[World]:
    """Makes a world: a started mesh, a project built and deployed. ``target`` is ``embedded`` or ``five``."""
    home = Path(tempfile.mkdtemp(prefix="nha-kills-"))
    port = free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    env |= {
        "HOME": str(home), "NHA_MESH__STATE_DIR": str(home / "m"), "NHA_ROUTER__PORT": str(port),
        "NHA_MESH__IDLE_STOP": "0", "PATH": f"{BIN}{os.pathsep}{env.get('PATH', '')}",
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
    }  # fmt: skip
    made = World(home, env, port, target)
    if target == "five":
        made.ports = {name: free_port() for name in SERVICES}
        env |= {
            "NHA_MESH__ADDRESS": f"127.0.0.1:{made.ports['metadata']}",
            "NHA_MESH__TOKEN_FILE": str(home / "m" / "owner.token"),
        }
    project = home / "project"
    try:
        write_notebook(project / "notebooks" / "train.ipynb", _cell("content = 'none'", "parameters"), _cell(TRAIN))
        write_notebook(project / "notebooks" / "predict.ipynb", _cell("answer = 'none'", "parameters"), _cell(PREDICT))
        (project / "Dockerfile").write_text("FROM noronhadataops/noronha:latest\nADD . ${APP_HOME}\n")
        (project / "requirements.txt").write_text("")
        made.start()
        made.nha("model", "new", "--name", "m", "--model-file", '{"name": "model.bin"}')
        made.nha("proj", "new", "--name", "p", "--home-dir", str(project), "--model", "m")
        made.nha("proj", "build", "--from-here")
        made.nha("depl", "new", "--name", "d", "--nb", "notebooks/predict", "--params", '{"answer": "0"}')
        yield made
    except BaseException:
        made.end()
        raise
    left = made.end()
    assert not left, f"processes did not end: {left}"


class Prober:
    """Asks the deployment for predictions all the time and keeps what failed."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/predict?project=p&deploy=d"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.asked = 0
        self.failures: list[tuple[float, str]] = []
        self.last_good = time.monotonic()

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def once(self) -> str:
        """Returns one answer's result; raises when there is none."""
        with urllib.request.urlopen(urllib.request.Request(self._url, data=b"1"), timeout=20) as answer:
            return str(json.load(answer)["result"])

    def _ask(self) -> None:
        while not self._stop.wait(0.03):
            self.asked += 1
            began = time.monotonic()
            try:
                self.once()
                self.last_good = time.monotonic()
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:  # cut off anywhere
                body = error.read()[:200].decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
                self.failures.append((began, f"{error!r} {body}"))


def _answer(port: int) -> str | None:
    """Returns what the deployment answers, None while nothing answers because the proxy was just killed."""
    with contextlib.suppress(OSError):
        return Prober(port).once()
    return None


@dataclass
class Kill:
    """One kill and what came of it."""

    number: int
    work: str
    victim: str
    delay: float
    exit_code: int | None
    problem: str = ""


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Killer:
    """Does work, kills something in the middle, and checks what must hold."""

    def __init__(self, made: World, seed: int, longest: float = MOMENT) -> None:
        self.world = made
        self.random = random.Random(seed)
        self.longest = longest
        """Seconds for which now and then a service is frozen."""
        self.standing = len(made.family())
        """Processes that there are when nothing is being done."""
        self.serial = 0
        self.duration = {"publish": 1.0, "build": 1.5, "train": 3.0, "deploy": 3.0}
        self.table: list[Kill] = []

    def _work(self, kind: str) -> tuple[list[str], Callable[[], None]]:
        """Returns the command of a piece of work and what must hold once it was acknowledged."""
        made, number = self.world, self.serial
        if kind == "publish":
            folder = made.home / "files" / f"d{number}"
            folder.mkdir(parents=True)
            for name, size in (("a.bin", 10), ("b.bin", 3 << 20), ("c.bin", 0)):
                (folder / name).write_bytes(self.random.randbytes(size))
            name = f"models/m/datasets/d{number}"
            files = _digests(folder)
            made.attempted.setdefault(name, []).append(files)

            def published() -> None:
                made.acknowledged[name] = files

            return made.command("ds", "new", "--name", f"d{number}", "--model", "m", "--path", str(folder)), published
        if kind == "build":
            (made.home / "project" / "notes.txt").write_text(str(number))

            def built() -> None:
                with made.connect() as mesh:
                    from noronha.v1 import metadata_pb2 as pb
                    from noronha.v1 import task_status_pb2 as status

                    build = mesh.metadata.GetBuild(pb.GetBuildRequest(name="projects/p/builds/latest"))
                    assert build.status.state == status.TaskStatus.SUCCEEDED, build

            return made.command("proj", "build", "--proj", "p", "--from-here"), built
        if kind == "train":
            content = f"content-{number}"
            name = f"models/m/versions/t{number}"
            digest = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
            made.attempted.setdefault(name, []).append({"model.bin": digest})

            def trained() -> None:
                made.acknowledged[name] = {"model.bin": digest}

            command = made.command(
                "train", "new", "--proj", "p", "--name", f"t{number}", "--nb", "notebooks/train", "--params",
                json.dumps({"content": content}),
            )  # fmt: skip
            return command, trained
        assert kind == "deploy"

        def deployed() -> None:
            answer = until(lambda: _answer(made.router_port), "an answer of the deployment")
            assert answer == str(number), f"deployment of {number} was acknowledged, {answer} answers"

        command = made.command(
            "depl", "new", "--proj", "p", "--name", "d", "--nb", "notebooks/predict", "--params",
            json.dumps({"answer": str(number)}),
        )  # fmt: skip
        return command, deployed

    def victims(self) -> list[str]:
        """Returns what can be killed in this world."""
        services = list(SERVICES) if self.world.target == "five" else ["mesh"]
        return [*services, *(f"{each}{FROZEN}" for each in services), "cli", "envoy"]

    def _strike(self, victim: str, command: subprocess.Popen[str]) -> None:
        made = self.world
        if victim == "cli":
            command.kill()
        elif victim == "envoy":
            for process in made.envoys():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        elif victim.endswith(FROZEN):
            name = victim.removesuffix(FROZEN)
            process = made.mesh_process() if name == "mesh" else made.processes[name].pid
            if process is not None:
                os.kill(process, signal.SIGSTOP)
                try:
                    time.sleep(self.random.choice((MOMENT, MOMENT, MOMENT, self.longest)))
                finally:
                    os.kill(process, signal.SIGCONT)
        elif victim == "mesh":
            process = made.mesh_process()
            if process is not None:
                os.kill(process, signal.SIGKILL)
                until(lambda: not psutil.pid_exists(process), "the mesh to be gone")
            time.sleep(self.random.choice((0.0, 1.5)))  # away for a moment, unless the command starts it again
            made.start()
        else:
            made.processes[victim].kill()
            made.processes[victim].wait()
            time.sleep(self.random.choice((0.0, 1.5)))
            made.start(victim)

    def once(self, kind: str, victim: str, share: float) -> Kill:
        """Does one piece of work, kills ``victim`` after ``share`` of its usual duration, and checks everything."""
        self.serial += 1
        made = self.world
        until(lambda: _answer(made.router_port), "predictions before the kill")
        replicas = self._replicas()
        line, holds = self._work(kind)
        kill = Kill(self.serial, kind, victim, share * self.duration[kind], None)
        self.table.append(kill)
        with Prober(made.router_port) as prober:
            began = time.monotonic()
            command = subprocess.Popen(
                line, env=made.env, cwd=made.home / "project", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            drained: list[str] = []
            reader = threading.Thread(target=lambda: drained.append(command.stdout.read()), daemon=True)
            reader.start()
            time.sleep(kill.delay)
            struck = time.monotonic()
            self._strike(victim, command)
            try:
                kill.exit_code = command.wait(WAIT * 2)
            except subprocess.TimeoutExpired:
                command.kill()
                kill.problem = f"the command hung: {drained}"
                raise AssertionError(kill.problem) from None
            reader.join(10)
            if kill.exit_code == 0:
                if victim == "cli" or time.monotonic() - struck < 0.01:
                    self.duration[kind] = max(0.5, time.monotonic() - began)
                holds()
            else:
                assert "Traceback" not in "".join(drained), drained
            self._settled()
            if kill.exit_code != 0:
                self._again(line, kind, drained)
                holds()
                self._settled()
            if kind != "deploy":
                assert self._replicas() == replicas, f"replicas {replicas} served, now {self._replicas()} do"
            until(lambda: prober.last_good > struck, "predictions after the kill")
            bad = [failure for at, failure in prober.failures if victim != "envoy" or not struck - 1 < at < struck + 15]
            assert not bad, f"predictions failed: {bad[:3]} of {len(bad)}; {prober.asked} asked"
        until(self._checked, "the mesh to answer")
        return kill

    def _replicas(self) -> set[str]:
        """Returns the names of the replicas that serve."""
        from noronha.v1 import metadata_pb2 as pb
        from noronha.v1 import replica_pb2

        request = pb.ListReplicasRequest(parent="projects/p/deployments/d", page_size=1000)
        with self.world.connect() as mesh:
            found = mesh.metadata.ListReplicas(request).replicas
        return {each.name for each in found if each.state == replica_pb2.Replica.READY}

    def _checked(self) -> bool:
        """Checks everything that is listed; false while a part that was started anew does not answer yet."""
        from noronha.rpc.errors import Unavailable

        try:
            self._everything_listed_is_right()
        except Unavailable:
            return False
        return True

    def _again(self, line: list[str], kind: str, drained: list[str]) -> None:
        """Types the command again, as its user would; a training that still exists is asked for anew."""
        answer = subprocess.run(
            line, env=self.world.env, cwd=self.world.home / "project", capture_output=True, text=True, timeout=300,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if answer.returncode != 0:
            raise AssertionError(
                f"{kind} failed again: {answer.stdout[-800:]} {answer.stderr[-800:]}; first: {drained}"
            )

    def _settled(self) -> None:
        from noronha.rpc.errors import NoronhaError
        from noronha.v1 import deployment_pb2, task_status_pb2
        from noronha.v1 import metadata_pb2 as pb

        ended = {
            task_status_pb2.TaskStatus.SUCCEEDED,
            task_status_pb2.TaskStatus.FAILED,
            task_status_pb2.TaskStatus.CANCELLED,
        }
        open_work: list[str] = []

        def settled() -> bool:
            open_work.clear()
            try:
                with self.world.connect() as mesh:
                    trainings = mesh.metadata.ListTrainings(
                        pb.ListTrainingsRequest(parent="projects/p", page_size=1000)
                    )
                    builds = mesh.metadata.ListBuilds(
                        pb.ListBuildsRequest(parent="projects/p", page_size=1000, all_revisions=True)
                    )
                    deployment = mesh.metadata.GetDeployment(pb.GetDeploymentRequest(name="projects/p/deployments/d"))
            except (NoronhaError, OSError) as error:
                open_work.append(repr(error))
                return False
            open_work.extend(
                f"{each.name} {each.status.state}"
                for each in (*trainings.trainings, *builds.builds)
                if each.status.state not in ended
            )
            if deployment.status.state != deployment_pb2.DeploymentStatus.READY:
                open_work.append(f"{deployment.name} {deployment.status}")
            elif deployment.status.observed_generation != deployment.generation:
                open_work.append("the deployment follows")
            if open_work:
                return False
            wrong = [
                f"{each.name} ended as {task_status_pb2.TaskStatus.State.Name(each.status.state)}: {each.status.error}"
                for each in (*trainings.trainings, *builds.builds)
                if each.status.state != task_status_pb2.TaskStatus.SUCCEEDED
            ]
            wrong += [f"{each.name} published {each.published}" for each in trainings.trainings if not each.published]
            if wrong:
                raise RuntimeError("; ".join(wrong))
            family = self.world.family()
            if len(family) != self.standing:
                open_work.append(f"{len(family)} processes instead of {self.standing}: {sorted(family.values())}")
            return not open_work

        try:
            until(settled, "everything to settle")
        except AssertionError as error:
            raise AssertionError(f"{error}: {open_work[:5]}") from None
        except RuntimeError as error:
            raise AssertionError(str(error)) from None

    def _everything_listed_is_right(self, *, read_all: bool = False) -> None:
        """Checks every record, and the bytes of those that this work concerned and of some others, or of all."""
        from noronha.v1 import metadata_pb2 as pb
        from noronha.v1 import store_pb2 as store

        with self.world.connect() as mesh:
            versions = mesh.metadata.ListModelVersions(
                pb.ListModelVersionsRequest(parent="models/m", page_size=1000, all_revisions=True)
            ).model_versions
            datasets = mesh.metadata.ListDatasets(
                pb.ListDatasetsRequest(parent="models/m", page_size=1000, all_revisions=True)
            ).datasets
            newest: dict[str, dict[str, str]] = {}
            for each in (*versions, *datasets):
                files = {file.path: file.digest for file in each.files}
                newest.setdefault(each.name, files)
                assert files in self.world.attempted[each.name], f"{each.name} has files that nobody wrote: {files}"
            for name, files in self.world.acknowledged.items():
                assert newest.get(name) == files, f"{name} was acknowledged with {files}, is {newest.get(name)}"
            assets = [*versions, *datasets]
            if not read_all:
                own = [each for each in assets if each.name.rpartition("/")[2][1:] == str(self.serial)]
                assets = [*own, *self.random.sample(assets, min(3, len(assets)))]
            for digest in sorted({file.digest for each in assets for file in each.files}):
                content = hashlib.sha256()
                for chunk in mesh.store.ReadBlob(store.ReadBlobRequest(digest=digest)):
                    content.update(chunk.data)
                assert "sha256:" + content.hexdigest() == digest, f"{digest} reads as {content.hexdigest()}"

    def run(self, runs: int) -> None:
        """Kills ``runs`` times, each combination of work and victim in turn, at random points."""
        combinations = [(kind, victim) for kind in self.duration for victim in self.victims()]
        self.random.shuffle(combinations)
        for number in range(runs):
            kind, victim = combinations[number % len(combinations)]
            share = self.random.uniform(0.0, 1.1)
            try:
                self.once(kind, victim, share)
            except AssertionError as error:
                self.table[-1].problem = str(error)
                raise
        self._everything_listed_is_right(read_all=True)


def main() -> int:
    """Runs the long version and keeps its table."""
    parser = argparse.ArgumentParser(description="Kills parts of a mesh at random points of real work.")
    parser.add_argument("--runs", type=int, default=200, help="kills, shared between one process and five")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the random points")
    parser.add_argument("--target", choices=("embedded", "five", "both"), default="both", help="which mesh")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "soak.md", help="file of the table")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    targets = ("embedded", "five") if given.target == "both" else (given.target,)
    done: Counter[tuple[str, str, str]] = Counter()
    problems: list[str] = []
    for target in targets:
        left = given.runs // len(targets)
        chunk_seed = given.seed
        while left > 0:
            before = left
            try:
                with world(target) as made:
                    killer = Killer(made, chunk_seed, PAST_THE_LEASE)
                    try:
                        killer.run(left)
                    except Exception as error:
                        problems.append(f"{target}, {killer.table[-1].work}, {killer.table[-1].victim}: {error}")
                        print(problems[-1], flush=True)
                    for kill in killer.table:
                        done[(target, kill.work, kill.victim)] += 1
                    left -= len(killer.table)
            except AssertionError as error:  # the world itself would not begin, or would not end
                problems.append(f"{target}: {error}")
                print(problems[-1], flush=True)
            chunk_seed += 1
            print(f"{target}: {left} left", flush=True)
            if left == before:
                break
    lines = [
        "# Soak\n",
        "Written by `make soak`: parts of a mesh are ended with SIGKILL, or frozen with SIGSTOP, at random points of publishing,",
        "building, training and deploying, while predictions are asked for all the time. After every kill: nothing acknowledged",
        "is missing, everything listed reads back right, every training and build has succeeded, the replicas are the same,",
        "no process is left behind, and predictions went on.\n",
        f"Last run: {time.strftime('%Y-%m-%d')}, seed {given.seed}, {sum(done.values())} kills, {len(problems)} problems.\n",
        "| mesh | work | killed | times |",
        "|---|---|---|---|",
        *(f"| {target} | {work} | {victim} | {times} |" for (target, work, victim), times in sorted(done.items())),
        "",
        *(f"- {problem}" for problem in problems),
    ]
    given.output.write_text("\n".join(lines).rstrip() + "\n")
    print(f"{sum(done.values())} kills, {len(problems)} problems; kept in {given.output}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
