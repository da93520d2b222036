"""The process of one task: ``python -m noronha.tools.task --assignment FILE``.

It asks the mesh what to do, fetches what the notebook needs, runs it on a kernel of the project's environment, tells
the mesh of every step, and ends with the outcome. While the mesh is away it goes on, and tells later. The exit code
is 0 only for a task that succeeded.

The assignment file is one JSON object: ``address`` of the mesh, ``token_file``, ``interpreter`` for the kernel, and
``directories`` ``task``, ``app``, ``data``, ``model``, ``tmp`` and ``logs``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noronha.tools import surroundings
from noronha.tools.failures import NotebookFailure
from noronha.tools.kernel import Kernel, RuntimeFolder
from noronha.tools.notebook import CANCELLED, FAILED, NotebookRun, Result, result_of
from noronha.tools.outputs import Live

if TYPE_CHECKING:
    from noronha.client.connection import Mesh
    from noronha.tools.assets import Assets
    from noronha.v1 import tasks_pb2

logger = logging.getLogger("noronha.task")

EXECUTED = "executed.ipynb"
"""Name of the executed notebook in the folder of logs."""

GRACE = 8.0
"""Seconds between being told to end by a signal and ending by force; what told us waits a little longer."""

FETCHED_AT_ONCE = 4

PATIENCE = 300.0
"""Seconds that a training waits for the mesh to come back when it needs something of it."""

SERVING_PATIENCE = 5.0
"""The same of a replica, whose other requests must not wait as well."""

PROBE_EVERY = 0.05
"""Seconds between looks at a server that is starting."""


class Task:
    """One task from its assignment to its outcome."""

    def __init__(self, assignment_file: Path):
        self._file = assignment_file
        given = json.loads(assignment_file.read_text(encoding="utf-8"))
        self._given: dict[str, Any] = given
        self._directories = {name: Path(path) for name, path in given["directories"].items()}
        self._seen = _as_seen(self._directories)
        self._runtime = RuntimeFolder(self._directories["task"])
        self._kernel = Kernel(
            given.get("interpreter") or sys.executable,
            runtime=self._runtime,
            cwd=self._seen["app"],
            environment=self._environment(),
        )
        self._orders: queue.SimpleQueue[tuple[str, float, str]] = queue.SimpleQueue()
        self._run: NotebookRun | None = None
        self._lock = threading.Lock()
        self._cancelled: float | None = None
        self._shutdown = False
        self._endpoint: tuple[str, int] | None = None
        """Host and port of the model server, once there is one."""
        self._gone = False

    # -- the whole ----------------------------------------------------------------------------------------------
    def main(self) -> int:
        """Runs the task and returns its exit code."""
        signal.signal(signal.SIGTERM, lambda *_: self._orders.put(("stop", GRACE, "")))
        signal.signal(signal.SIGINT, lambda *_: self._orders.put(("cancel", GRACE, "")))
        early: NotebookFailure | None = None
        try:
            self._kernel.start()  # it boots while we find out what it is to do
        except NotebookFailure as failure:
            early = failure
        try:
            return self._work(early)
        finally:
            self._kernel.kill()
            self._runtime.remove()

    def _work(self, early: NotebookFailure | None) -> int:
        from noronha.client.connection import Mesh, read_token
        from noronha.client.words import in_words, is_quotation
        from noronha.rpc.errors import NoronhaError
        from noronha.tools.delivery import Delivery
        from noronha.tools.reporting import Reporter, insist, report_outcome
        from noronha.v1 import tasks_pb2

        threading.Thread(target=self._obey, name="orders", daemon=True).start()
        mesh = Mesh(self._given["address"], token=read_token(self._given.get("token_file", "")))
        request = tasks_pb2.GetAssignmentRequest()
        try:
            assignment = insist(
                lambda: mesh.tasks.GetAssignment(request, timeout=30),
                until=lambda: self._is_over() or self._cancelled is not None,
            )
        except NoronhaError as error:
            logger.error("there is no assignment to be had: %s", error)
            return 1
        delivery = Delivery(lambda: mesh.tasks, self._runtime.path, on_ended=self._on_gone)
        live = Live(delivery.add)
        reporter = Reporter(mesh, interval=_seconds(assignment.heartbeat_interval, 5.0), on_ended=self._on_gone)
        threading.Thread(target=self._watch, args=(mesh,), name="commands", daemon=True).start()
        executed = self._directories.get("logs", self._directories["task"]) / EXECUTED
        try:
            result = self._execute(mesh, assignment, reporter, live, executed, early)
        except Exception as defect:
            logger.exception("the task failed")
            result = Result(FAILED, "TASK_ERROR", f"The task itself failed: {type(defect).__name__}: {defect}")
        result = self._judged(assignment, result)
        if not result.succeeded and not is_quotation(result.reason):
            live.add(f"{result.reason}: {in_words(result.message).text}\n")
        live.close()
        reporter.close()
        name = assignment.notebook.rpartition("/")[2] or EXECUTED
        try:
            while not delivery.flush(5.0) and not self._is_over():
                pass  # the mesh is away: what the notebook said is kept until it is back
            if not self._gone:
                report_outcome(mesh, result, executed, name=name, until=self._is_over)
        finally:
            self._kernel.close()
            delivery.close()
        return 0 if result.succeeded else 1

    def _execute(
        self,
        mesh: Mesh,
        assignment: tasks_pb2.Assignment,
        reporter: Any,
        live: Live,
        executed: Path,
        early: NotebookFailure | None,
    ) -> Result:
        from noronha.tools.assets import Assets
        from noronha.tools.channel import Listener
        from noronha.v1 import tasks_pb2

        if assignment.kind not in (tasks_pb2.Assignment.TRAINING, tasks_pb2.Assignment.REPLICA):
            return Result(
                FAILED, "TASK_ERROR", "This release runs trainings and replicas only; the mesh asks for another."
            )

        run = NotebookRun(
            self._kernel,
            self._seen["app"] / assignment.notebook,
            executed,
            params_json=assignment.params_json,
            on_output=live.add,
            on_progress=reporter.progress,
            on_warning=reporter.warn,
        )
        with self._lock:
            self._run = run
            if self._cancelled is not None:
                run.cancel(self._cancelled)
        assets = Assets(
            mesh,
            meta=self._runtime.path / "meta",
            data=self._directories["data"],
            models=self._directories["model"],
            shown=self._shown,
            patience=SERVING_PATIENCE if assignment.kind == tasks_pb2.Assignment.REPLICA else PATIENCE,
            notice=lambda line: live.add(f"{line}\n"),
        )
        self._leave_facts(assignment)
        listener = Listener(
            self._runtime.path,
            {
                "publish": lambda asked: self._publish(mesh, assignment, asked, live),
                "require_dataset": lambda asked: assets.require_dataset(asked["model"], asked["name"]),
                "require_model_version": lambda asked: assets.require_model_version(asked["model"], asked["name"]),
                "stage_model_version": lambda asked: assets.stage_model_version(asked["model"], asked["name"]),
                "adopt_model_version": lambda asked: assets.adopt_model_version(
                    asked["model"], asked["name"], asked["path"]
                ),
                "serving": lambda asked: self._on_serving(asked["host"], asked["port"], reporter),
            },
            on_defect=lambda defect: logger.error("a question of the notebook failed", exc_info=defect),
        )
        try:
            if early is not None:
                raise early
            run.start()
            self._fetch(assets, assignment)
            return run.run()
        except NotebookFailure as failure:
            run.keep()
            return result_of(failure)
        finally:
            listener.close()

    def _judged(self, assignment: tasks_pb2.Assignment, result: Result) -> Result:
        """Returns the result as the task's own: a replica is to serve until it is told to end, then to end well."""
        from noronha.v1 import tasks_pb2

        if assignment.kind != tasks_pb2.Assignment.REPLICA:
            return result
        if self._shutdown:
            if result.succeeded:
                return result
            if result.reason in ("KERNEL_DIED", "CANCELLED"):
                return Result(
                    CANCELLED, "CANCELLED", "The replica was told to end and did not do so by itself in time."
                )
        if result.succeeded:
            return Result(
                FAILED,
                "NOT_SERVING",
                "The notebook ended without serving; its last cell must call the model server, as in "
                "OnlinePredict(predict_func=predict)().",
            )
        return result

    # -- what the notebook finds ----------------------------------------------------------------------------------
    def _environment(self) -> dict[str, str]:
        """Returns the kernel's variables: ours, which the platform chose, without settings and secrets of a mesh."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NHA_", "NORONHA_")) and name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        }
        interpreter = Path(self._given.get("interpreter") or sys.executable)
        if (interpreter.parent.parent / "pyvenv.cfg").exists():
            kept["VIRTUAL_ENV"] = str(interpreter.parent.parent)
        kept.setdefault("AM_I_ON_BOARD", "Yes")
        return {
            **kept,
            surroundings.VARIABLE: str(self._runtime.path),
            "TMPDIR": str(self._seen["tmp"]),
            "APP_HOME": str(self._seen["app"]),
            "LOCAL_DATA_DIR": str(self._seen["data"]),
            "LOCAL_MODEL_DIR": str(self._seen["model"]),
            "LOG_DIR": str(self._seen["logs"]),
        }

    def _shown(self, path: Path) -> Path:
        """Returns a path below one of the task's folders as the notebook sees it."""
        for name, folder in self._directories.items():
            if name != "task" and path.is_relative_to(folder):
                return self._seen[name] / path.relative_to(folder)
        return path

    def _own(self, path: str) -> Path:
        """Returns where a path that the notebook sees lies in the task's folders.

        Only what the task wrote is there, while in its view of ``/tmp`` parts of the host may have had to stay visible.
        """
        for name, folder in self._seen.items():
            if name != "task" and Path(path).is_relative_to(folder):
                return self._directories.get(name, folder) / Path(path).relative_to(folder)
        return Path(path)

    def _leave_facts(self, assignment: tasks_pb2.Assignment) -> None:
        from noronha.tools import documents
        from noronha.tools.assets import write_json
        from noronha.v1 import tasks_pb2, web_server_pb2

        meta = self._runtime.path / "meta"
        meta.mkdir(exist_ok=True)
        server = assignment.web_server
        kinds = {web_server_pb2.WebServer.GUNICORN: "gunicorn"}
        facts = {
            "purpose": os.environ.get("CONTAINER_PURPOSE", ""),
            "name": assignment.name,
            "project": assignment.project.name.rpartition("/")[2],
            # What it may publish to is more: the models of what it was given as well.
            "models": [each.rpartition("/")[2] for each in (assignment.project.models or assignment.models)],
            "folders": {name: str(path) for name, path in self._seen.items()},
            "web_server": {
                "type": kinds.get(server.type, "simple"),
                "enable_debug": server.enable_debug,
                "threads": {
                    "enabled": server.threads_enabled,
                    "high_cpu": server.threads_high_cpu,
                    "number": server.threads_number or None,
                },
                "extra_conf": json.loads(server.extra_conf_json or "{}"),
                "host": assignment.listen_host or "127.0.0.1",
                "port": assignment.listen_port,
            },
        }
        if assignment.HasField("project"):
            write_json(meta / "proj.json", documents.project(assignment.project))
        if assignment.HasField("training"):
            write_json(meta / "train.json", documents.training(assignment.training))
            if assignment.training.build_snapshot.name:
                write_json(meta / "bvers.json", documents.build(assignment.training.build_snapshot))
        if assignment.kind == tasks_pb2.Assignment.REPLICA:
            write_json(meta / "depl.json", documents.deployment(assignment))
        write_json(self._runtime.path / "task.json", facts)

    def _fetch(self, assets: Assets, assignment: tasks_pb2.Assignment) -> None:
        """Fetches what the task was given, while the kernel boots and what drives it is imported."""
        from noronha.rpc.errors import NoronhaError

        with ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="fetch") as pool:
            fetching = [(each.name, pool.submit(assets.dataset, each)) for each in assignment.datasets]
            fetching += [(each.name, pool.submit(assets.model_version, each)) for each in assignment.model_versions]
            import noronha.tools.engine  # noqa: F401

            for name, done in fetching:
                try:
                    done.result()
                except NoronhaError as error:
                    raise NotebookFailure("ASSET_UNAVAILABLE", f"{name} could not be fetched: {error}") from None

    # -- what the notebook asks for -------------------------------------------------------------------------------
    def _publish(
        self, mesh: Mesh, assignment: tasks_pb2.Assignment, asked: dict[str, Any], live: Live
    ) -> dict[str, Any]:
        """Publishes a version for the notebook and returns its document."""
        from noronha.client import publish
        from noronha.tools import documents
        from noronha.tools.reporting import insist
        from noronha.v1 import tasks_pb2

        training = assignment.kind == tasks_pb2.Assignment.TRAINING
        record = publish.model_version(
            mesh,
            asked["model"],
            asked.get("version"),
            publish.Files(str(self._own(asked["path"])), lightweight=asked.get("lightweight", False)),
            details_json=asked.get("details_json") or "{}",
            training=assignment.name if training else None,
            dataset=asked.get("dataset"),
            pretrained=asked.get("pretrained"),
            replace=lambda _: True,
            notice=lambda line: live.add(f"{line}\n"),
            patience=PATIENCE,
        )
        if training:
            request = tasks_pb2.ReportPublishedRequest(model_version=f"{record.name}@{record.revision}")
            insist(lambda: mesh.tasks.ReportPublished(request, timeout=30), until=self._is_over)
        return documents.model_version(record)

    def _on_serving(self, host: str, port: int, reporter: Any) -> None:
        self._endpoint = (host, port)
        told = "" if host in ("0.0.0.0", "::") else host
        reporter.serving(False, told, port)
        threading.Thread(
            target=self._probe, args=(host, port, lambda: reporter.serving(True, told, port)), name="probe", daemon=True
        ).start()

    def _probe(self, host: str, port: int, ready: Any) -> None:
        """Waits until the server's health is good."""
        while not self._shutdown and self._kernel.ended() is None:
            status = _call(host, port, "GET", "/health", timeout=5)[0]
            if status == 200:
                ready()
                return
            time.sleep(PROBE_EVERY)

    # -- what the mesh asks for -----------------------------------------------------------------------------------
    def _watch(self, mesh: Mesh) -> None:
        """Hears commands, for ever; a stream that breaks is opened again."""
        from noronha.rpc.errors import NoronhaError
        from noronha.v1 import tasks_pb2

        pause = 0.1
        while not self._gone:
            try:
                for command in mesh.tasks.WatchCommands(tasks_pb2.WatchCommandsRequest()):
                    pause = 0.1
                    kind = command.WhichOneof("kind")
                    if kind == "cancel":
                        self._orders.put(("cancel", _seconds(command.cancel.grace, GRACE), ""))
                    elif kind == "shutdown":
                        self._orders.put(("shutdown", _seconds(command.shutdown.grace, 30.0), ""))
                    elif kind == "update":
                        self._orders.put(("update", 0.0, command.update.model_version))
            except NoronhaError as error:
                if error.reason == "TASK_ENDED":
                    self._on_gone()
                    return
                logger.debug("commands cannot be heard: %s", error)
            time.sleep(pause)
            pause = min(2.0, pause * 2)

    def _obey(self) -> None:
        """Carries out what was asked, one after the other."""
        while True:
            order, grace, argument = self._orders.get()
            try:
                if order == "cancel":
                    self._cancel(grace)
                elif order in ("shutdown", "stop"):
                    self._end(grace)
                elif order == "update":
                    threading.Thread(target=self._update, args=(argument,), name="update", daemon=True).start()
            except Exception:
                logger.exception("the order to %s could not be carried out", order)

    def _cancel(self, grace: float) -> None:
        with self._lock:
            self._cancelled = grace
            if self._run is not None:
                self._run.cancel(grace)

    def _end(self, grace: float) -> None:
        """Ends the task: a server finishes what is in flight, anything else is cancelled."""
        if self._endpoint is None:
            self._shutdown = True
            self._cancel(grace)
            return
        if self._shutdown:
            return
        self._shutdown = True
        self._kernel.signal(signal.SIGTERM)
        threading.Thread(target=self._force, args=(grace,), name="force", daemon=True).start()

    def _force(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            if self._kernel.ended() is not None:
                return
            time.sleep(0.1)
        self._kernel.kill()

    def _update(self, version: str) -> None:
        """Has a server take up another version of its model."""
        from urllib.parse import quote

        bare = version.partition("@")[0].rpartition("/")[2]
        if self._endpoint is None:
            return
        status, answer = _call(*self._endpoint, "POST", f"/update?model_version={quote(bare)}", timeout=600)
        if status != 200:
            logger.error("%s was not taken up: %s %s", version, status, answer[:500])

    def _on_gone(self) -> None:
        """The mesh knows us no longer: there is nobody to work for."""
        self._gone = True
        self._orders.put(("stop", GRACE, ""))

    def _is_over(self) -> bool:
        """Whether waiting for the mesh makes no sense any more."""
        return self._gone or not self._file.exists()


def _as_seen(directories: dict[str, Path]) -> dict[str, Path]:
    """Returns the task's folders by the paths that notebooks see: ``/app`` … where those are the same folders."""
    seen = {}
    for name, path in directories.items():
        short = Path("/") / name
        same = False
        if name != "task":
            with contextlib.suppress(OSError):
                same = os.path.samefile(short, path)
        seen[name] = short if same else path
    seen.setdefault("logs", seen["task"])
    return seen


def _seconds(duration: Any, default: float) -> float:
    seconds = float(duration.seconds) + duration.nanos / 1e9
    return seconds if seconds > 0 else default


def _call(host: str, port: int, method: str, path: str, *, timeout: float) -> tuple[int, str]:
    """Calls the replica's own server; status 0 when it does not answer."""
    import http.client

    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(address, port, timeout=timeout)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read(65536).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)
    finally:
        connection.close()


def main(arguments: list[str] | None = None) -> int:
    """Runs the task of an assignment file and returns its exit code."""
    parser = argparse.ArgumentParser(prog="noronha.tools.task", description="Runs one task of a mesh.")
    parser.add_argument("--assignment", required=True, type=Path, help="JSON file that says where the mesh is")
    parser.add_argument("--verbose", action="store_true", help="log every step")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if chosen.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    return Task(chosen.assignment).main()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that wait for the mesh, and gRPC's own, have nothing left to say
