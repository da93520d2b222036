"""Whatever a notebook does, its training ends in the right state, says why, keeps the notebook and leaves nothing."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TELL = "import os\nprint('process', os.getpid(), flush=True)\n"
"""Says which process to look for when the training has ended."""

FORK = """
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    os.environ.clear()
    os.write(1, b'process %d\\n' % os.getpid())
    while True:
        time.sleep(1)
"""
PUBLISH = """
from noronha.tools.publish import Publisher
from noronha.tools.shortcuts import tmp_path
def publish(content):
    with open(tmp_path('model.bin'), 'w') as file:
        file.write(content)
    Publisher()()
"""
NOTEBOOKS = {
    "raises": ("a = 1", f"{TELL}print('before')", "def f():\n    raise ValueError('no such flower')\nf()"),
    "leaves": ("a = 1", f"{TELL}os._exit(0)"),
    "exits": ("a = 1", f"{TELL}import sys\nsys.exit(3)"),
    "killed": ("a = 1", f"{TELL}import signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    "crashes": ("a = 1", f"{TELL}import ctypes\nctypes.string_at(0)"),
    "asks": ("a = 1", f"{TELL}a = input('how many? ')"),
    "typed": ("a = None", "for name in names: print(name, type(globals()[name]).__name__, ascii(globals()[name]))"),
    "twice": ("a = 1", "print('a is', a)"),
    "garbage": ("a = 1", "import os\nos.write(1, bytes(range(256)))\nprint('\\udcff \\x00')\nprint('the end')"),
    "forks": ("a = 1", f"{TELL}import time{FORK}\nprint('parent is done')"),
    "endless": ("a = 1", f"{TELL}print('begun', flush=True)\nimport time\nwhile True: time.sleep(0.05)"),
    "deaf": (
        "a = 1",
        f"{TELL}import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun', flush=True)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ),
    "meets": (
        "own = other = meeting = ''",
        "import os, tempfile, time\nfrom noronha.tools.shortcuts import tmp_path\n"
        "paths = {tmp_path('same'), os.path.join(tempfile.gettempdir(), 'same.too')}\n"
        "for path in paths: open(path, 'w').write(own)\n"
        "open(os.path.join(meeting, own), 'w').close()\n"
        "while not os.path.exists(os.path.join(meeting, other)): time.sleep(0.02)\n"
        "for path in paths: assert open(path).read() == own, path",
    ),
    "prints": ("count = 3", "for number in range(count): print('line', number)", "print('the end')"),
    "publishes": (
        "raising = times = 1",
        f"{PUBLISH}for time in range(times): publish(f'content {{time}}')\n1 / raising",
    ),
    "saves": (
        "a = 1",
        f"{TELL}{PUBLISH}import time\nprint('begun', flush=True)\n"
        "try:\n    while True: time.sleep(0.05)\nexcept KeyboardInterrupt:\n    publish('so far')\n    raise",
    ),
}


@pytest.fixture(scope="module")
def trainer(user: Any, make_project: Any) -> Iterator[Any]:
    """A user in the folder of a built project."""
    user.cwd = make_project(user.cwd / "notebooks-project", NOTEBOOKS)
    folder = user.cwd / "notebooks"
    (folder / "broken.ipynb").write_text('{"cells": [')

    def rewrite(name: str, source: str, change: Any) -> None:
        content = json.loads((folder / f"{source}.ipynb").read_text())
        change(content)
        (folder / f"{name}.ipynb").write_text(json.dumps(content))

    rewrite("untagged", "twice", lambda content: content["cells"].pop(0))
    rewrite("twice", "twice", lambda content: content["cells"].insert(1, {**content["cells"][0], "id": "again"}))
    rewrite("titled", "raises", lambda content: content["cells"].insert(
        0, {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Flowers"}
    ))  # fmt: skip
    rewrite("specless", "prints", lambda content: content["metadata"].clear())
    rewrite("foreign", "prints", lambda content: content["metadata"].update(
        kernelspec={"name": "nobody-has-it", "display_name": "Ana's", "language": "Python"}
    ))  # fmt: skip
    rewrite("foreign-r", "prints", lambda content: content["metadata"].update(
        kernelspec={"name": "ir", "display_name": "R", "language": "R"}
    ))  # fmt: skip
    old = [
        {"cell_type": "code", "input": source, "language": "python", "outputs": [], "collapsed": False, "metadata": {}}
        for source in ("count = 1", "print('count is', count)")
    ]
    old[0]["metadata"] = {"tags": ["parameters"]}
    (folder / "old.ipynb").write_text(
        json.dumps({"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": old}]})
    )
    user.nha("model", "new", "--name", "m", "--model-file", '{"name": "model.bin"}')
    user.nha("proj", "new", "--name", "notebooks", "--home-dir", ".", "--model", "m")
    user.nha("proj", "build")
    yield user


def _train(trainer: Any, name: str, notebook: str, params: str = "{}") -> subprocess.CompletedProcess[str]:
    answer = trainer.run("-s", "train", "new", "--name", name, "--nb", f"notebooks/{notebook}", "--params", params)
    assert "Traceback" not in answer.stderr
    return answer  # type: ignore[no-any-return]


def _nothing_left(trainer: Any, output: str) -> None:
    """Fails unless every process that the notebook told of has gone, and those that carried it with it."""
    told = [int(line.split()[1]) for line in output.splitlines() if line.startswith("process ")]
    trainer.eventually(f"{told} to be gone", lambda: not any(_lives(process) for process in told))
    tasks = str(trainer.state_dir / "runner" / "tasks")
    trainer.eventually("supervisors and tasks to be gone", lambda: not [
        line for line in trainer.left_behind().values() if tasks in line or "noronha.tools.task" in line
    ])  # fmt: skip


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return False


def _executed(trainer: Any, name: str) -> str:
    return str(trainer.nha("train", "notebook", "--name", name, "--path", "-"))


@pytest.mark.parametrize(
    "notebook,params,reason,words",
    [
        ("raises", "{}", "CELL_RAISED", "Cell 3 raised ValueError: no such flower."),
        ("raises", '{"a": 2}', "CELL_RAISED", "Cell 3 raised ValueError: no such flower."),
        ("titled", '{"a": 2}', "CELL_RAISED", "Cell 3 raised ValueError: no such flower."),
        ("leaves", '{"a": 2}', "KERNEL_DIED", "The kernel exited with code 0 while cell 2 ran."),
        ("exits", "{}", "CELL_RAISED", "Cell 2 raised SystemExit: 3."),
        ("killed", "{}", "KERNEL_DIED", "The kernel was killed by SIGKILL (perhaps out of memory) while cell 2 ran."),
        ("crashes", "{}", "KERNEL_DIED", "The kernel was killed by SIGSEGV while cell 2 ran."),
        ("asks", "{}", "CELL_RAISED", "input() has nobody to ask here"),
        ("broken", '{"a": 2}', "NOTEBOOK_INVALID", "broken.ipynb is not a notebook"),
        ("foreign-r", "{}", "NOTEBOOK_LANGUAGE", "foreign-r.ipynb is written in R; Noronha runs notebooks in Python."),
    ],
)
def test_one_that_fails_says_why(trainer: Any, notebook: str, params: str, reason: str, words: str) -> None:
    """Cells are counted as in the author's own notebook, with parameters and without."""
    name = f"{notebook}-{len(params)}"
    answer = _train(trainer, name, notebook, params)
    last = answer.stderr.strip().splitlines()[-1]
    assert answer.returncode == 9 and words in last and last.endswith(f"[{reason}]")
    found = trainer.json("train", "info", "--name", name)["task"]
    assert (found["state"], found["reason"]) == ("FAILED", reason) and words in found["error"]
    kept = _executed(trainer, name)
    assert kept == '{"cells": [' if notebook == "broken" else json.loads(kept)["cells"]
    if notebook in ("raises", "titled"):
        assert "no such flower" in kept and "Cell In[3], line 3" in answer.stdout
    _nothing_left(trainer, answer.stdout)


def test_parameters_of_every_type_arrive_unchanged(trainer: Any) -> None:
    params = {
        "beyond": 2**63 + 1, "below": -(10**40), "one": 1, "whole": 1.0, "minus": -0.0, "tiny": 1e-300, "yes": True,
        "no": False, "nothing": None, "text": 'it\'s "q" $HOME `ls` ${x} \\n \\ {b} %s \n\t end?', "unicode": "naïve 花 🌸",
        "triple": '"""\n\'\'\'', "empty": "", "nested": {"a": [1, 1.0, {"b": [None, True, []]}], "": {}}, "match": "!ls",
    }  # fmt: skip
    names = list(params)
    answer = _train(trainer, "typed", "typed", json.dumps({**params, "names": names}))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [f"{name} {type(value).__name__} {value!a}" for name, value in params.items()]
    told = trainer.json("train", "info", "--name", "typed")["details"]["params"]
    assert json.dumps({name: told[name] for name in names}) == json.dumps(params)


def test_without_a_tagged_cell_parameters_arrive_with_a_warning(trainer: Any) -> None:
    answer = _train(trainer, "untagged", "untagged", '{"a": 5}')
    assert answer.returncode == 0 and "a is 5" in answer.stdout
    warning = "untagged.ipynb has no cell tagged 'parameters'"
    assert [line for line in answer.stderr.splitlines() if line.startswith(f"Warning: {warning}")]
    (told,) = trainer.json("train", "info", "--name", "untagged")["warnings"]
    assert told.startswith(warning)


def test_a_second_cell_of_defaults_takes_no_parameter_back(trainer: Any) -> None:
    answer = _train(trainer, "twice", "twice", '{"a": 5}')
    assert answer.returncode == 0 and "a is 5" in answer.stdout


def test_a_name_that_python_keeps_for_itself_is_refused(trainer: Any) -> None:
    answer = _train(trainer, "keyword", "prints", '{"class": 1}')
    assert answer.returncode == 9 and "'class' cannot be the name of a Python variable" in answer.stderr
    assert trainer.json("train", "info", "--name", "keyword")["task"]["reason"] == "PARAMETERS_INVALID"


@pytest.mark.parametrize("notebook,said", [("old", "count is 7"), ("specless", "line 6"), ("foreign", "line 6")])
def test_an_older_format_and_any_kernelspec_run(trainer: Any, notebook: str, said: str) -> None:
    answer = _train(trainer, notebook, notebook, '{"count": 7}')
    assert answer.returncode == 0 and said in answer.stdout, answer.stderr


def test_output_that_is_no_text_harms_nobody(trainer: Any) -> None:
    process = subprocess.run(
        trainer.command("-s", "train", "new", "--name", "garbage", "--nb", "notebooks/garbage"),
        cwd=trainer.cwd, env=trainer.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=180,
    )  # fmt: skip
    assert process.returncode == 0 and b"the end" in process.stdout, process.stderr
    assert "the end" in _executed(trainer, "garbage")


def test_a_million_prints_arrive_in_order(trainer: Any) -> None:
    answer = _train(trainer, "prints", "prints", '{"count": 1000000}')
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    assert lines == [*(f"line {number}" for number in range(1_000_000)), "the end"]
    assert len(_executed(trainer, "prints")) < 4 << 20
    _nothing_left(trainer, "")


def test_a_fork_that_wants_to_outlive_its_notebook_does_not(trainer: Any) -> None:
    answer = _train(trainer, "forks", "forks")
    assert answer.returncode == 0 and "parent is done" in answer.stdout
    _nothing_left(trainer, answer.stdout)


@pytest.mark.parametrize("notebook", ["endless", "deaf"])
def test_one_that_never_ends_is_cancelled(trainer: Any, notebook: str) -> None:
    process = subprocess.Popen(
        trainer.command("-s", "train", "new", "--name", notebook, "--nb", f"notebooks/{notebook}"),
        cwd=trainer.cwd, env=trainer.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = process.stdout.readline()
    assert process.stdout.readline() == "begun\n"
    trainer.nha("train", "cancel", "--name", notebook)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and f"training notebooks:{notebook} was cancelled" in errors
    found = trainer.json("train", "info", "--name", notebook)["task"]
    assert (found["state"], found["reason"]) == ("CANCELLED", "CANCELLED") and found["error"]
    assert "begun" in _executed(trainer, notebook)
    _nothing_left(trainer, told)


@pytest.fixture
def meeting() -> Iterator[str]:
    """A folder that every notebook sees as it is; what lies below /tmp none does."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield folder


def test_two_that_write_the_same_temporary_names_do_not_meet(trainer: Any, meeting: str) -> None:
    processes = [
        subprocess.Popen(
            trainer.command("-s", "train", "new", "--name", own, "--nb", "notebooks/meets", "--params",
                            json.dumps({"own": own, "other": other, "meeting": meeting})),
            cwd=trainer.cwd, env=trainer.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for own, other in (("left", "right"), ("right", "left"))
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said


@pytest.mark.parametrize("times,raising", [(1, 0), (2, 1)])
def test_what_was_published_is_told_however_the_training_ends(trainer: Any, times: int, raising: int) -> None:
    name = f"published-{times}-{raising}"
    answer = _train(trainer, name, "publishes", json.dumps({"times": times, "raising": raising}))
    assert answer.returncode == (0 if raising else 9), answer.stderr
    expected = [f"m:{name}@{revision}" for revision in range(1, times + 1)]
    assert [line.rpartition(" ")[2] for line in answer.stderr.splitlines() if line.startswith("Published")] == expected
    found = trainer.json("train", "info", "--name", name)
    assert found["movers"] == expected
    trainer.nha("movers", "info", "--model", "m", "--name", name)


def test_one_that_is_cancelled_may_save_what_it_has(trainer: Any) -> None:
    """Until the grace is over a notebook may publish; what it published is whole and told."""
    process = subprocess.Popen(
        trainer.command("-s", "train", "new", "--name", "saves", "--nb", "notebooks/saves"),
        cwd=trainer.cwd, env=trainer.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = process.stdout.readline()
    assert process.stdout.readline() == "begun\n"
    trainer.nha("train", "cancel", "--name", "saves")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Published model version: m:saves@1" in errors
    found = trainer.json("train", "info", "--name", "saves")
    assert found["task"]["state"] == "CANCELLED" and found["movers"] == ["m:saves@1"]
    _nothing_left(trainer, told)
