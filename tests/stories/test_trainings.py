"""Trainings by the command: how each way to end is told, what is live, what survives, what Ctrl-C does."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

NOTEBOOKS = {
    "fine": ("value = None", "print('value is', repr(value))"),
    "raises": ("a = 1", "print('before')", "raise ValueError('no such flower')"),
    "leaves": ("a = 1", "import os\nos._exit(0)"),
    "exits": ("a = 1", "import sys\nsys.exit(3)"),
    "slow": (
        "steps = 60",
        "import time\nfor step in range(steps):\n    print('step', step, flush=True)\n    time.sleep(0.25)",
    ),
    "borrows": (
        "base = 'english'",
        "from noronha.tools.publish import Publisher\nfrom noronha.tools.shortcuts import require_dataset, tmp_path\n"
        "print(require_dataset('own'))\nopen(tmp_path('clf'), 'w').write('x')\nPublisher()(uses_pretrained=True)",
    ),
    "environment": ("a = 1", "import os\nprint('got', os.environ['GREETING'])"),
}


@pytest.fixture(scope="module")
def trainer(user: Any, make_project: Any) -> Iterator[Any]:
    """A user in the folder of a built project."""
    user.cwd = make_project(user.cwd / "project", NOTEBOOKS, "RUN apt-get install -y x\nADD . ${APP_HOME}")
    folder = user.cwd / "notebooks"
    (folder / "untagged.ipynb").write_text((folder / "fine.ipynb").read_text().replace('"parameters"', '"other"'))
    user.nha("proj", "new", "--name", "p", "--home-dir", ".")
    built = user.run("-s", "proj", "build", check=True)
    told = [line for line in (built.stdout + built.stderr).splitlines() if "RUN apt-get install -y x is not" in line]
    assert len(told) == 2 and told[0].startswith("notice: ") and told[1].startswith("- "), (
        "in the log and in the record"
    )
    yield user


def test_a_training_that_ends_well_exits_with_0(trainer: Any) -> None:
    params = '{"value": [12345678901234567890123, 1.0, true, null, "$HOME \\\\ \\u00e9"]}'
    answer = trainer.run("train", "new", "--name", "good", "--nb", "notebooks/fine", "--params", params, check=True)
    assert answer.stdout == "value is [12345678901234567890123, 1.0, True, None, '$HOME \\\\ é']\n"
    words = re.findall(r"Training p:good: (\w+)", answer.stderr)
    assert words[-1] == "FINISHED" and words == sorted(set(words), key=words.index)
    found = trainer.json("train", "info", "--name", "good")
    assert found["task"]["state"] == "FINISHED" and found["task"]["reason"] == ""
    made = json.loads(
        trainer.run("-s", "train", "new", "--name", "good", "--nb", "notebooks/fine", "-o", "json", check=True).stdout
    )
    assert made["name"] == "good" and made["task"]["state"] == "FINISHED"


def test_names_outside_the_grammar_are_refused(trainer: Any) -> None:
    names = ["a_b", "-a", "a--b", "a b", "x:y", "../../x", "", "a" * 65, "\uff41", "a\n"]
    for number, arguments in enumerate((
        ("train", "new", "--nb", "notebooks/fine"), ("train", "info"), ("train", "rm"),
        ("depl", "new", "--nb", "notebooks/fine"), ("depl", "info"), ("depl", "rm"),
    )):  # fmt: skip
        for name in names[number % 3 :: 3]:
            assert "[BAD_NAME]" in trainer.refused(*arguments, "--name", name)


def test_a_dataset_that_the_disk_changed_fails_its_training_until_it_is_stored_again(trainer: Any) -> None:
    trainer.nha("model", "new", "-n", "disk")
    content = os.urandom(300_000)
    (trainer.cwd / "data.bin").write_bytes(content)
    publish = ("ds", "new", "-m", "disk", "-n", "d", "-p", "data.bin")
    trainer.nha(*publish)
    digest = trainer.json("ds", "info", "-m", "disk", "-n", "d")["files"][0]["digest"].partition(":")[2]
    (stored,) = (trainer.state_dir / "store" / "objects").rglob(f"{digest}*")
    stored.chmod(0o600)
    with open(stored, "r+b") as opened:
        opened.seek(150_000)
        opened.write(bytes([content[150_000] ^ 1]))
    train = ("train", "new", "--name", "damaged", "--nb", "notebooks/fine", "--ds", "disk:d")
    line = trainer.refused(*train)
    assert "[ASSET_UNAVAILABLE]" in line and digest in line and "damaged" in line
    task = trainer.json("train", "info", "--name", "damaged")["task"]
    assert task["reason"] == "ASSET_UNAVAILABLE" and task["error"].startswith("dataset disk:d could not be fetched")
    assert "ASSET_UNAVAILABLE: dataset disk:d " in trainer.nha("train", "logs", "--name", "damaged")
    trainer.nha("movers", "new", "-m", "disk", "-n", "same-bytes", "-p", "data.bin")
    trainer.nha(*train)


def test_a_project_of_one_model_needs_not_name_it_beside_what_it_borrows_from_another(trainer: Any) -> None:
    (trainer.cwd / "borrowed.bin").write_bytes(b"words")
    for model in ("words", "mine"):
        trainer.nha("model", "new", "-n", model)
    trainer.nha("movers", "new", "-m", "words", "-n", "english", "-p", "borrowed.bin")
    trainer.nha("ds", "new", "-m", "mine", "-n", "own", "-p", "borrowed.bin")
    trainer.nha("proj", "update", "-n", "p", "-m", "mine")
    trainer.run(
        "train", "new", "--name", "borrows", "--nb", "notebooks/borrows", "--pretrained", "words:english", check=True
    )
    assert trainer.json("movers", "info", "-m", "mine", "-n", "borrows")["pretrained"] == "words:english@1"


def test_a_refused_training_leaves_the_one_of_its_name(trainer: Any) -> None:
    trainer.run("-s", "train", "new", "--name", "stays", "--nb", "notebooks/fine", check=True)
    before = trainer.json("train", "info", "--name", "stays")
    for wrong in (("--ds", "nobody:nothing"), ("--tag", "never-built"), ("-e", "PATH=x")):
        answer = trainer.run("-s", "train", "new", "--name", "stays", "--nb", "notebooks/fine", *wrong)
        assert answer.returncode not in (0, 9)
    assert trainer.json("train", "info", "--name", "stays") == before
    assert "value is" in trainer.nha("train", "logs", "--name", "stays")


@pytest.mark.parametrize(
    "notebook,reason,part",
    [
        ("raises", "CELL_RAISED", "no such flower"),
        ("leaves", "KERNEL_DIED", "kernel"),
        ("exits", None, "3"),
        ("absent", "NOTEBOOK_NOT_FOUND", "absent"),
    ],
)
def test_a_training_that_fails_exits_with_9_and_says_why(
    trainer: Any, notebook: str, reason: str | None, part: str
) -> None:
    answer = trainer.run("train", "new", "--name", notebook, "--nb", f"notebooks/{notebook}")
    last = answer.stderr.strip().splitlines()[-1]
    assert answer.returncode == 9 and last.startswith(f"Error: training p:{notebook} failed: ") and part in last
    found = trainer.json("train", "info", "--name", notebook)
    assert found["task"]["state"] == "FAILED" and found["task"]["error"]
    if reason is not None:
        assert found["task"]["reason"] == reason and f"[{reason}]" in last
    cancelled = trainer.run("train", "cancel", "--name", notebook, check=True)
    assert f"training p:{notebook} had ended already: FAILED" in cancelled.stderr


def test_machines_get_the_record_of_a_training_that_failed(trainer: Any) -> None:
    answer = trainer.run("train", "new", "--name", "told", "--nb", "notebooks/raises", "-o", "json")
    assert answer.returncode == 9 and "[CELL_RAISED]" in answer.stderr
    assert json.loads(answer.stdout) == trainer.json("train", "info", "--name", "told")


def test_a_warning_is_said_once(trainer: Any) -> None:
    answer = trainer.run("train", "new", "--name", "warned", "--nb", "notebooks/untagged", "-p", '{"a": 1}', check=True)
    assert (answer.stdout + answer.stderr).count("has no cell tagged 'parameters'") == 1
    assert len(trainer.json("train", "info", "--name", "warned")["warnings"]) == 1


def test_errors_name_things_as_people_type_them_and_say_what_next(trainer: Any) -> None:
    refused = trainer.refused("train", "info", "--name", "nope")
    assert "Error: training p:nope does not exist; see 'nha train list --proj p' [NOT_FOUND]" in refused
    refused = trainer.refused("train", "new", "--nb", "notebooks/fine", "-e", "PATH=x")
    assert "Error: --env-var PATH is set by Noronha itself" in refused


def test_what_is_missing_is_told_before_anything_is_recorded(trainer: Any) -> None:
    before = trainer.nha("train", "list", "-o", "name")
    assert "[NOT_FOUND]" in trainer.refused("train", "new", "--nb", "notebooks/fine", "-t", "absent")
    assert "[NOT_FOUND]" in trainer.refused("train", "new", "--nb", "notebooks/fine", "--ds", "m:d")
    assert "[NOT_FOUND]" in trainer.refused("train", "new", "--nb", "notebooks/fine", "--pretrained", "m:v")
    assert "[UNKNOWN_PROFILE]" in trainer.refused("train", "new", "--nb", "notebooks/fine", "--rp", "huge")
    assert trainer.nha("train", "list", "-o", "name") == before


def test_environment_variables_arrive(trainer: Any) -> None:
    answer = trainer.run("train", "new", "--nb", "notebooks/environment", "-e", "GREETING=a=b c", check=True)
    assert "got a=b c" in answer.stdout and "Using random name: " in answer.stderr


def _begin(trainer: Any, name: str, steps: int = 60) -> subprocess.Popen[str]:
    """Starts a slow training in the foreground and returns once its output came live."""
    process = subprocess.Popen(
        trainer.command("-s", "train", "new", "--name", name, "--nb", "notebooks/slow", "-p", f'{{"steps": {steps}}}'),
        cwd=trainer.cwd, env=trainer.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "step 0\n"
    return process


def test_the_first_ctrl_c_cancels_the_training(trainer: Any) -> None:
    process = _begin(trainer, "stopped")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "press Ctrl-C again" in errors and "was cancelled" in errors
    assert trainer.json("train", "info", "--name", "stopped")["task"]["state"] == "CANCELLED"


def test_a_command_that_is_killed_leaves_its_training_alone(trainer: Any) -> None:
    process = _begin(trainer, "orphan", steps=12)
    process.kill()
    process.communicate(timeout=60)
    assert trainer.refused("train", "rm", "--name", "orphan").endswith("[STILL_RUNNING]")
    logs = trainer.run("train", "logs", "--name", "orphan", "--follow", check=True).stdout
    assert logs.count("step") == 12
    assert trainer.json("train", "info", "--name", "orphan")["task"]["state"] == "FINISHED"
    assert trainer.nha("train", "rm", "--name", "orphan") == "Removed Training: p:orphan\n"


def test_cancel_from_elsewhere_ends_the_one_that_waits(trainer: Any) -> None:
    process = _begin(trainer, "cancelled")
    trainer.nha("train", "cancel", "--name", "cancelled")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "training p:cancelled was cancelled" in errors


def test_a_mesh_that_is_killed_is_started_again_and_nothing_is_missed(trainer: Any) -> None:
    if trainer.target != "embedded":
        pytest.skip("the embedded mesh alone is started by the command")
    process = _begin(trainer, "survivor", steps=40)
    os.kill(trainer.json("mesh", "status")["process"], signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [int(number) for number in re.findall(r"step (\d+)", output)] == list(range(1, 40))
    assert trainer.json("train", "info", "--name", "survivor")["task"]["state"] == "FINISHED"


def test_a_mesh_that_is_stopped_stays_down_and_who_follows_is_told_how_to_go_on(trainer: Any) -> None:
    if trainer.target != "embedded":
        pytest.skip("the embedded mesh alone is started by the command")
    process = _begin(trainer, "left", steps=30)
    trainer.nha("mesh", "down")
    _, errors = process.communicate(timeout=120)
    last = errors.strip().splitlines()[-1]
    assert process.returncode == 7 and last.startswith("Error: the mesh was stopped; training p:left goes on"), errors
    assert last.endswith("[MESH_STOPPED]") and "Traceback" not in errors
    assert trainer.run("mesh", "status").returncode == 7, "nobody started it again"
    named = shlex.split(last.split("'")[1])
    assert named[:3] == ["nha", "train", "logs"]
    assert trainer.run(*named[1:], check=True).stdout.count("step") == 30
    assert trainer.json("train", "info", "--name", "left")["task"]["state"] == "FINISHED"


def test_who_follows_goes_on_when_a_stopped_mesh_is_started_again_soon(trainer: Any) -> None:
    if trainer.target != "embedded":
        pytest.skip("the embedded mesh alone is started by the command")
    process = _begin(trainer, "resumed", steps=40)
    trainer.nha("mesh", "down")
    trainer.nha("mesh", "up")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [int(number) for number in re.findall(r"step (\d+)", output)] == list(range(1, 40))


def test_the_table_says_where_trainings_stand(trainer: Any) -> None:
    lines = trainer.nha("train", "list", "-o", "table").splitlines()
    assert {"NAME", "STATE", "PROGRESS", "REASON"} <= set(lines[0].split())


def test_a_deployment_that_cannot_serve_says_why(trainer: Any) -> None:
    answer = trainer.run("depl", "new", "--name", "bad", "--nb", "notebooks/raises")
    assert answer.returncode == 9 and "no such flower" in answer.stderr and "[CELL_RAISED]" in answer.stderr
    assert trainer.json("depl", "info", "--name", "bad")["availability"] == "0%"
    assert trainer.nha("depl", "rm", "--name", "bad") == "Removed Deployment: p:bad\n"


def test_the_executed_notebook_is_fetched_also_of_one_that_failed(trainer: Any) -> None:
    assert trainer.run("train", "new", "--name", "kept", "--nb", "notebooks/raises").returncode == 9
    trainer.nha("train", "notebook", "--name", "kept")
    content = json.loads((trainer.cwd / "kept.ipynb").read_text())
    shown = json.dumps(content["cells"])
    assert "before" in shown and "no such flower" in shown
    again = trainer.run("train", "notebook", "--name", "kept")
    assert again.returncode != 0 and "terminal" in again.stderr
    told = trainer.json("train", "notebook", "--name", "kept", "--path", "other.ipynb")
    assert told["path"] == "other.ipynb" and told["size_bytes"] == (trainer.cwd / "other.ipynb").stat().st_size
    missing = trainer.run("train", "notebook", "--name", "absent")
    assert missing.returncode == 3 and missing.stderr.count("Error:") == 1 and "Traceback" not in missing.stderr
