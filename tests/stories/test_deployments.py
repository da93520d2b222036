"""Deployments by the command: made, replaced, replaced badly, scaled, removed."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

NOTEBOOKS = {
    "predict": (
        "answer = 1",
        "from noronha.tools.serving import OnlinePredict\nOnlinePredict(predict_func=lambda x: answer)()",
    ),
    "broken": ("answer = 1", "raise RuntimeError('the model is not there')"),
}


@pytest.fixture(scope="module")
def deployer(user: Any, make_project: Any) -> Iterator[Any]:
    """A user in the folder of a built project."""
    user.cwd = make_project(user.cwd / "project", NOTEBOOKS)
    user.nha("proj", "new", "--name", "p", "--home-dir", ".")
    user.nha("proj", "build")
    yield user


def _ask(user: Any, deploy: str) -> Any:
    address = f"http://127.0.0.1:{user.router_port}/predict?project=p&deploy={deploy}"
    request = urllib.request.Request(address, data=b"[]", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["result"]


def _deploy(user: Any, name: str, answer: int, *more: str) -> Any:
    return user.run(
        "-s", "depl", "new", "--name", name, "--nb", "notebooks/predict", "--params", json.dumps({"answer": answer}), *more
    )  # fmt: skip


def test_a_replacement_fails_no_request_and_a_bad_one_changes_nothing(deployer: Any) -> None:
    assert _deploy(deployer, "d", 1, "--n-tasks", "2").returncode == 0
    assert _ask(deployer, "d") == 1
    assert deployer.json("depl", "info", "--name", "d")["ready_replicas"] == 2
    seen: list[Any] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                seen.append(_ask(deployer, "d"))
            except (OSError, urllib.error.HTTPError) as error:
                seen.append(repr(error))
            time.sleep(0.02)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        answer = _deploy(deployer, "d", 2, "--n-tasks", "2")
        assert answer.returncode == 0 and "Deployment exists" in answer.stderr
        assert _ask(deployer, "d") == 2
        bad = deployer.run("-s", "depl", "new", "--name", "d", "--nb", "notebooks/broken", "--n-tasks", "2")
        assert bad.returncode == 9 and "the model is not there" in bad.stderr
        assert "revision 2 goes on serving" in bad.stderr
        assert _ask(deployer, "d") == 2
    finally:
        stop.set()
        asking.join()
    assert set(seen) == {1, 2} and seen == sorted(seen), [each for each in seen if each not in (1, 2)][:5]
    found = deployer.json("depl", "info", "--name", "d")
    assert found["revision"] == 3 and found["serving_revision"] == 2 and found["state"] == "DEGRADED"


def test_a_question_without_a_terminal_is_an_error(deployer: Any) -> None:
    assert _deploy(deployer, "asked", 1).returncode == 0
    answer = deployer.run("depl", "new", "--name", "asked", "--nb", "notebooks/predict")
    assert answer.returncode == 2 and "[NO_TERMINAL]" in answer.stderr
    assert deployer.json("depl", "info", "--name", "asked")["revision"] == 1


def test_none_wanted_is_stopped_and_removed_is_gone(deployer: Any) -> None:
    answer = _deploy(deployer, "none", 1, "--n-tasks", "0")
    assert answer.returncode == 0 and "p:none has no replicas" in answer.stderr
    assert "Predictions at" not in answer.stderr, "nobody answers there"
    assert deployer.json("depl", "info", "--name", "none")["state"] == "STOPPED"
    assert deployer.nha("depl", "rm", "--name", "none") == "Removed Deployment: p:none\n"
    assert deployer.run("-s", "depl", "rm", "--name", "none").returncode == 3
    with pytest.raises(urllib.error.HTTPError) as refused:
        _ask(deployer, "none")
    assert refused.value.code == 404


def test_two_deployments_cannot_have_one_port(deployer: Any, free: Any) -> None:
    port = str(free())
    assert _deploy(deployer, "first", 1, "--port", port).returncode == 0
    answer = _deploy(deployer, "second", 1, "--port", port)
    assert answer.returncode == 4 and "[PORT_TAKEN]" in answer.stderr


def test_a_port_of_another_program_is_told_and_taken_once_it_is_free(deployer: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = _deploy(deployer, "late", 4, "--port", str(port))
        assert answer.returncode == 9 and str(port) in answer.stderr and "[PORT_IN_USE]" in answer.stderr
        assert deployer.json("depl", "info", "--name", "late")["state"] == "DEGRADED"
        assert _ask(deployer, "late") == 4
    deadline = time.monotonic() + 60
    while deployer.json("depl", "info", "--name", "late")["state"] != "READY":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/predict", data=b"[]", timeout=30) as found:
        assert json.load(found)["result"] == 4


def test_where_predictions_go_is_said_only_of_a_router_that_serves(late: Any, make_project: Any) -> None:
    """Otherwise somebody else answers there."""
    user, taken = late
    user.cwd = make_project(user.cwd / "project", NOTEBOOKS)
    user.nha("proj", "new", "--name", "p", "--home-dir", ".")
    user.nha("proj", "build")
    answer = _deploy(user, "d", 1)
    assert answer.returncode == 0 and "Predictions at" not in answer.stderr, answer.stderr
    (warning,) = [line for line in answer.stderr.splitlines() if line.startswith("Warning: ")]
    assert re.fullmatch(rf"Warning: router does not serve: port {user.router_port} of .* set router\.port .*", warning)
    taken.close()

    def told() -> bool:
        return f"Predictions at http://127.0.0.1:{user.router_port}/predict?project=p&deploy=d" in _deploy(user, "d", 2).stderr

    user.eventually("the router's address", told)
    assert _ask(user, "d") == 2


def test_the_logs_of_replicas_are_shown_each_line_with_its_replica(deployer: Any) -> None:
    assert _deploy(deployer, "logged", 1, "--n-tasks", "2").returncode == 0
    lines = deployer.nha("depl", "logs", "--name", "logged").splitlines()
    replicas = {line.partition(" | ")[0] for line in lines}
    assert len(replicas) == 2 and all(" | " in line for line in lines)
    listed = deployer.json("depl", "info", "--name", "logged")["replica_list"]
    assert {(each["name"], each["revision"], each["state"]) for each in listed} == {
        (name, 1, "READY") for name in replicas
    }
    assert all(re.fullmatch(r"[0-9.]+:[0-9]+", each["endpoint"]) for each in listed)
    one = replicas.pop()
    alone = deployer.nha("depl", "logs", "--name", "logged", "--replica", one)
    assert "gunicorn" in alone and one not in alone


def test_predictions_go_on_while_the_mesh_is_down(deployer: Any) -> None:
    if deployer.target != "embedded":
        pytest.skip("the embedded mesh alone is stopped and started by the command")
    assert _deploy(deployer, "steady", 7).returncode == 0
    deployer.nha("mesh", "down")
    assert _ask(deployer, "steady") == 7
    assert deployer.json("depl", "info", "--name", "steady")["availability"] == "100%"
    assert _ask(deployer, "steady") == 7


def test_what_a_stopped_mesh_has_left_running_can_still_be_stopped(deployer: Any) -> None:
    if deployer.target != "embedded":
        pytest.skip("the embedded mesh alone is started by the command")
    assert _deploy(deployer, "left", 3).returncode == 0
    deployer.nha("mesh", "down")
    assert _ask(deployer, "left") == 3
    deployer.nha("mesh", "down", "--stop-tasks")
    assert deployer.left_behind() == {}


def test_replicas_that_are_being_started_are_stopped_as_well(deployer: Any) -> None:
    """A mesh that is started only to stop everything begins with what it finds on record."""
    if deployer.target != "embedded":
        pytest.skip("the embedded mesh alone is started by the command")
    for name in ("one", "two"):
        assert _deploy(deployer, name, 4, "--n-tasks", "2").returncode == 0
    for _ in range(4):
        deployer.nha("mesh", "down", "--stop-tasks")
        tasks = [each for each in deployer.left_behind().values() if "noronha.tools.task" in each]
        assert tasks == []
