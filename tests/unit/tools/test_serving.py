"""Model servers inside a real kernel, and what they answer."""

import contextlib
import http.client
import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from noronha.rpc.errors import NotFound
from noronha.tools import gunicorn_server
from noronha.tools import serving as serving_module
from noronha.tools.channel import Listener
from noronha.tools.errors import NhaDataError, ServingError
from noronha.tools.kernel import Kernel, RuntimeFolder
from noronha.tools.notebook import NotebookRun
from noronha.tools.serving import LazyModelServer, ModelServer, OnlinePredict
from tests.waiting import until

pytestmark = pytest.mark.timeout(120)


def request(server, path, body=b"", method="POST", query="", **environ):
    """Calls a server's WSGI application as a web server would; returns status number, headers and body."""
    seen = {}

    def start_response(status, headers):
        seen.update(status=int(status.split()[0]), headers=dict(headers))

    made = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body), **environ,
    }  # fmt: skip
    answer = b"".join(server.wsgi(made, start_response))
    assert int(seen["headers"]["Content-Length"]) == len(answer)
    return seen["status"], seen["headers"], answer


@pytest.mark.parametrize("result", [[], {}, "", 0, None, False, [None, ""], "setosa", {"a": [1.0, None]}])
def test_results_are_answered_faithfully(result):
    status, headers, answer = request(OnlinePredict(lambda body: result), "/predict", b"[1]")
    decoded = json.loads(answer)
    assert (status, decoded["result"]) == (200, result)
    assert decoded["metadata"]["model_version"] == []
    time.strptime(decoded["metadata"]["datetime"], "%Y-%m-%d %H:%M:%S")
    assert headers["Content-Type"] == "application/json" and headers["Charset"] == "utf-8"


@pytest.mark.parametrize(
    "result, answer",
    [("setosa", b"setosa"), ("", b""), (0, b"0"), ([], b"[]"), ({"a": 1}, b'{"a": 1}'), (None, b"null")],
)
def test_bare_results_are_answered_bare(result, answer):
    assert request(OnlinePredict(lambda body: result, enrich=False), "/predict")[::2] == (200, answer)


def raising(error):
    def predict(body):
        raise error

    return predict


@pytest.mark.parametrize(
    "error, status, told",
    [
        (
            NhaDataError("four numbers, please"),
            400,
            {"Error": "NhaDataError", "Message": "four numbers, please", "cause": None},
        ),
        (ServingError("no model"), 500, {"Error": "ServingError", "Message": "no model", "cause": None}),
        (KeyError("x"), 501, "KeyError('x')"),
    ],
)
def test_errors_are_answered_by_kind(error, status, told):
    got, _, answer = request(OnlinePredict(raising(error)), "/predict")
    assert got == status
    assert json.loads(answer)["err"] == told and "metadata" in json.loads(answer)
    assert json.loads(request(OnlinePredict(raising(error), enrich=False), "/predict")[2]) == {"err": told}


def test_a_result_that_cannot_be_written_is_an_error_of_the_notebook():
    status, _, answer = request(OnlinePredict(lambda body: object()), "/predict")
    assert status == 501 and "cannot be written as JSON" in json.loads(answer)["err"]


def test_health_turns_after_an_error_of_the_server_and_recovers():
    behaviour = [lambda body: 1]
    server = OnlinePredict(lambda body: behaviour[0](body))

    def health():
        return request(server, "/health", method="GET")[::2]

    assert health() == (200, b'{"status": "ok"}')
    behaviour[0] = raising(ValueError("a request that makes no sense"))
    request(server, "/predict")
    assert health()[0] == 200
    behaviour[0] = raising(ServingError("broken"))
    request(server, "/predict")
    assert health() == (503, b'{"status": "nok"}')
    behaviour[0] = lambda body: 2
    request(server, "/predict")
    assert health()[0] == 200


@pytest.mark.parametrize("code", [0, 3, 4, "text"])
def test_a_function_that_exits_ends_its_request_alone(code):
    status, _, answer = request(OnlinePredict(raising(SystemExit(code))), "/predict")
    assert status == 501 and "SystemExit" in json.loads(answer)["err"]


def test_health_recovers_although_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(serving_module, "RECOVERY", 0.2)
    server = OnlinePredict(raising(ServingError("broken")))
    request(server, "/predict")
    assert request(server, "/health", method="GET")[0] == 503
    deadline = time.monotonic() + 30
    while request(server, "/health", method="GET")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_other_paths_and_methods_are_refused():
    server = OnlinePredict(lambda body: 1)
    assert request(server, "/nowhere")[0] == 404
    assert request(server, "/predict", method="GET")[0] == 405
    assert request(server, "/update")[0] == 404


@pytest.mark.parametrize(
    "body, content_type, text",
    [
        ("ação".encode(), "", "ação"),
        ("ação".encode("latin-1"), "text/plain; charset=ISO-8859-1", "ação"),
        (b"a\xff", "application/json", "a\ufffd"),
        ("é".encode(), 'text/plain; charset="nobody-knows"', "é"),
    ],
)
def test_bodies_are_read_in_their_charset(body, content_type, text):
    seen = []
    request(OnlinePredict(seen.append), "/predict", body, CONTENT_TYPE=content_type)
    assert seen == [text]


# -- many versions behind one server ------------------------------------------------------------------------------


class FakeTask:
    """A task's folder and the process that answers for it, with versions that are plain folders."""

    def __init__(self, base: Path):
        self.base = base
        self.runtime = RuntimeFolder()
        self.folder = self.runtime.path
        self.revisions = {}
        self.fetched = []
        self.endpoint = None
        self.serving = threading.Event()
        (self.folder / "meta").mkdir()
        self.tell({})
        self.listener = Listener(
            self.folder,
            {
                "require_model_version": lambda q: self.adopt(q, self.stage(q)),
                "stage_model_version": self.stage,
                "adopt_model_version": lambda q: self.adopt(q, {**self.staged, "path": q["path"]}),
                "serving": self.announced,
            },
        )

    def tell(self, web_server):
        (self.folder / "task.json").write_text(
            json.dumps({"project": "botanics", "models": ["iris-clf"], "folders": {"tmp": str(self.base)},
                        "web_server": {"host": "127.0.0.1", "port": 0, **web_server}})
        )  # fmt: skip

    def publish(self, version, content):
        self.revisions.setdefault(version, []).append(content)

    def stage(self, question):
        version = question["name"]
        if version not in self.revisions:
            raise NotFound(f"models/iris-clf/versions/{version} does not exist")
        self.fetched.append(version)
        revision = len(self.revisions[version])
        path = self.base / f"{version}-{revision}"
        path.mkdir(exist_ok=True)
        (path / "clf").write_text(self.revisions[version][-1])
        self.staged = {"_id": f"iris-clf:{version}", "name": version, "model": {"name": "iris-clf"}, "path": str(path),
                       "revision": revision, "modified": "2026-01-02 03:04:05"}  # fmt: skip
        return self.staged

    def adopt(self, question, record):
        file = self.folder / "meta" / f"mv.iris-clf.{question['name']}.json"
        file.with_suffix(".new").write_text(json.dumps(record))
        file.with_suffix(".new").replace(file)
        return record

    def announced(self, question):
        self.endpoint = (question["host"], question["port"])
        self.serving.set()

    def close(self):
        self.listener.close()
        self.runtime.remove()


@pytest.fixture
def task(tmp_path, monkeypatch):
    made = FakeTask(tmp_path)
    monkeypatch.setenv("NORONHA_TASK_DIR", str(made.folder))
    yield made
    made.close()


def load(path, meta):
    assert meta.model.name == "iris-clf"
    return (Path(path) / "clf").read_text()


def predict(body, model, meta):
    return f"{model} of {meta.name}@{meta.revision}: {body}"


def ask(server, version, body=b"x"):
    status, _, answer = request(server, "/predict", body, query=f"model_version={version}" if version else "")
    decoded = json.loads(answer)
    return status, decoded.get("result", decoded.get("err"))


def test_versions_are_loaded_when_first_asked_for(task):
    task.publish("v1", "one")
    task.publish("v10", "ten")
    server = LazyModelServer(predict, load)
    assert ask(server, "v1") == (200, "one of v1@1: x")
    assert ask(server, "v10") == (200, "ten of v10@1: x")
    assert ask(server, "v1") == (200, "one of v1@1: x")
    assert task.fetched == ["v1", "v10"]


def test_a_version_that_is_missing_or_unnamed_is_the_requests_fault(task):
    server = LazyModelServer(predict, load, model_name="iris-clf")
    status, told = ask(server, None)
    assert status == 400 and told["Message"] == "Expected model_version argument\nGot: {}"
    assert ask(server, "nobody-published")[0] == 404
    assert request(server, "/health", method="GET")[0] == 200


def test_functions_of_fewer_arguments_get_fewer(task):
    task.publish("v1", "one")
    server = LazyModelServer(lambda body, model: model, lambda path: Path(path).name)
    assert ask(server, "v1") == (200, "v1-1")


def test_many_first_requests_make_one_load(task):
    task.publish("v1", "one")
    loads = []

    def slow(path, meta):
        loads.append(path)
        time.sleep(0.2)
        return "one"

    server = LazyModelServer(predict, slow)
    got = []
    threads = [threading.Thread(target=lambda: got.append(ask(server, "v1"))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [(200, "one of v1@1: x")] * 20
    assert len(loads) == 1 and task.fetched == ["v1"]


def test_a_load_that_fails_is_told_to_all_and_tried_again(task):
    task.publish("v1", "one")
    attempts = []

    def flaky(path, meta):
        attempts.append(path)
        if len(attempts) == 1:
            raise OSError("truncated")
        return "one"

    server = LazyModelServer(predict, flaky)
    assert ask(server, "v1")[0] == 501
    assert ask(server, "v1") == (200, "one of v1@1: x")


def test_the_version_not_used_for_longest_goes_first(task):
    loads = []
    for name in "abc":
        task.publish(name, name)
    server = LazyModelServer(predict, lambda path, meta: loads.append(meta.name) or meta.name, max_models=2)
    for name in "abaca":
        assert ask(server, name)[0] == 200
    assert loads == ["a", "b", "c"]
    ask(server, "b")
    assert loads == ["a", "b", "c", "b"]


def test_update_takes_up_the_new_version_and_keeps_the_old_when_it_cannot(task):
    task.publish("v1", "old")
    server = LazyModelServer(predict, load)
    other_worker = LazyModelServer(predict, load)
    other_worker._shared = server._shared  # what a fork has
    assert ask(server, "v1")[1] == ask(other_worker, "v1")[1] == "old of v1@1: x"
    task.publish("v1", "new")
    assert ask(server, "v1")[1] == "old of v1@1: x"
    assert request(server, "/update", query="model_version=v1")[::2] == (200, b"OK")
    assert ask(server, "v1")[1] == ask(other_worker, "v1")[1] == "new of v1@2: x"
    server._load_model_func = raising(ValueError("broken file"))
    server._load_model_func = lambda path, meta: (_ for _ in ()).throw(ValueError("broken file"))
    task.publish("v1", "broken")
    assert request(server, "/update", query="model_version=v1")[0] == 500
    assert ask(server, "v1")[1] == ask(other_worker, "v1")[1] == "new of v1@2: x"
    assert request(server, "/update", query="model_version=nobody-has")[0] == 404
    assert request(server, "/update")[::2] == (400, b"Expected model_version argument\nGot: {}")


def test_servers_that_cannot_serve_are_refused_when_made():
    with pytest.raises(ServingError, match="predict_func"):
        OnlinePredict("predict")
    with pytest.raises(ServingError, match="load_model_func"):
        LazyModelServer(predict, None)
    with pytest.raises(ServingError, match="max_models"):
        LazyModelServer(predict, load, max_models=0)
    with pytest.raises(TypeError):
        ModelServer(predict)


# -- settings -----------------------------------------------------------------------------------------------------


def test_simple_is_one_worker_with_one_thread():
    chosen = gunicorn_server.settings({"type": "simple", "extra_conf": {"workers": 8}, "host": "127.0.0.1", "port": 0})
    assert (chosen["workers"], chosen["threads"], chosen["bind"]) == (1, 1, "127.0.0.1:0")
    assert gunicorn_server.settings({})["bind"] == "0.0.0.0:8080"


@pytest.mark.parametrize(
    "threads, expected",
    [
        ({}, 1), ({"enabled": False, "number": 9}, 1), ({"enabled": True, "number": 7, "high_cpu": True}, 7),
        ({"enabled": True}, 2 * os.cpu_count()), ({"enabled": True, "high_cpu": True}, 4 * os.cpu_count()),
    ],
)  # fmt: skip
def test_threads_are_what_is_configured(threads, expected):
    chosen = gunicorn_server.settings({"type": "gunicorn", "threads": threads})
    assert chosen["threads"] == expected
    assert chosen["worker_class"] == ("gthread" if threads.get("enabled") else "sync")


def test_extra_conf_is_honoured_and_the_notebook_wins():
    section = {"type": "gunicorn", "extra_conf": {"workers": 3, "timeout": 7}, "enable_debug": True}
    chosen = gunicorn_server.settings(section)
    assert (chosen["workers"], chosen["timeout"], chosen["loglevel"]) == (3, 7, "debug")
    chosen = gunicorn_server.settings(section, server_conf={"timeout": 9, "threads": 4, "worker_class": "gthread"})
    assert (chosen["workers"], chosen["timeout"], chosen["threads"]) == (3, 9, 4)
    chosen = gunicorn_server.settings(section, server_conf={"threads": {"enabled": True, "number": 2}})
    assert chosen["threads"] == 2
    assert gunicorn_server.settings(section, server_type="simple")["workers"] == 1


def test_unknown_settings_are_refused_by_name():
    with pytest.raises(ServingError, match="wrokers"):
        gunicorn_server.settings({"type": "gunicorn", "extra_conf": {"wrokers": 3}})
    with pytest.raises(ServingError, match="timeout"):
        gunicorn_server.settings({"type": "gunicorn"}, server_conf={"timeout": "soon"})
    with pytest.raises(ServingError, match="werkzeug"):
        gunicorn_server.settings({"type": "werkzeug"})


def test_options_of_the_old_simple_server_mean_the_same_or_nothing():
    with pytest.warns(UserWarning, match="use_debugger"):
        chosen = gunicorn_server.settings({}, server_conf={"threaded": True, "use_debugger": True})
    assert chosen["threads"] == 2 * os.cpu_count()


# -- in a kernel --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(task, make_notebook, tmp_path, *cells):
    """Runs a prediction notebook, yields the run and what it shows once it serves; ends it whatever happens."""
    shown = []
    kernel = Kernel(sys.executable, runtime=task.runtime, cwd=tmp_path)
    run = NotebookRun(kernel, make_notebook(*cells), tmp_path / "executed.ipynb", on_output=shown.append)
    run.results = []
    run.start()
    thread = threading.Thread(target=lambda: run.results.append(run.run()), daemon=True)
    thread.start()
    run.thread = thread
    try:
        deadline = time.monotonic() + 60
        while not task.serving.wait(0.1):
            assert thread.is_alive() and time.monotonic() < deadline, (run.results, "".join(shown))
        yield run, shown
    finally:
        kernel.kill()
        thread.join(10)


def call(task, path, body=None, method="POST"):
    connection = http.client.HTTPConnection(*task.endpoint, timeout=30)
    try:
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


SERVE = (
    "import json, os, time\n"
    "def predict(body):\n"
    "    print('asked for', body)\n"
    "    if body == 'slow': open('slow-began', 'w'); time.sleep(1.5)\n"
    "    return [body, os.getpid()]\n",
    "from noronha.tools.serving import OnlinePredict\nOnlinePredict(predict_func=predict)()",
    "print('after serving')",
)


def test_a_replica_serves_logs_and_finishes_what_is_in_flight(task, make_notebook, tmp_path, nothing_left_of):
    with serving(task, make_notebook, tmp_path, *SERVE) as (run, shown), nothing_left_of(run):
        assert task.endpoint[0] == "127.0.0.1" and task.endpoint[1] > 0
        status, answer = call(task, "/predict", "Olá".encode())
        assert status == 200 and json.loads(answer)["result"][0] == "Olá"
        assert json.loads(answer)["result"][1] != run.kernel.pid
        assert call(task, "/health", method="GET") == (200, b'{"status": "ok"}')
        until(lambda: "asked for Olá" in "".join(shown))
        slow = []
        thread = threading.Thread(target=lambda: slow.append(call(task, "/predict", b"slow")))
        thread.start()
        until((tmp_path / "slow-began").exists)
        run.kernel.signal(signal.SIGTERM)
        thread.join(30)
        assert slow[0][0] == 200
        run.thread.join(30)
        assert run.results[0].succeeded, run.results
        assert "after serving" in "".join(shown)
        run.close()


def test_workers_and_their_deaths_never_reach_the_notebook(task, make_notebook, tmp_path, nothing_left_of):
    task.tell({"type": "gunicorn", "extra_conf": {"workers": 2}})
    with serving(task, make_notebook, tmp_path, *SERVE) as (run, shown), nothing_left_of(run):
        pids = set()
        until(lambda: pids.add(json.loads(call(task, "/predict", b"x")[1])["result"][1]) or len(pids) == 2)
        os.kill(min(pids), signal.SIGKILL)
        until(lambda: pids.add(json.loads(call(task, "/predict", b"x")[1])["result"][1]) or len(pids) == 3)
        run.kernel.signal(signal.SIGTERM)
        run.thread.join(30)
        assert run.results[0].succeeded, run.results
        assert "".join(shown).count("after serving") == 1
        run.close()


def test_a_taken_port_fails_the_cell(task, make_notebook, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        task.tell({"port": taken.getsockname()[1]})
        kernel = Kernel(sys.executable, runtime=task.runtime, cwd=tmp_path)
        run = NotebookRun(kernel, make_notebook(*SERVE), tmp_path / "executed.ipynb")
        try:
            run.start()
            result = run.run()
        finally:
            kernel.kill()
        assert result.reason == "CELL_RAISED" and result.name == "ServingError"
