"""Executing a notebook with a real kernel: parameters, outcomes, output, ends."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from noronha.tools import notebook as notebooks
from noronha.tools.kernel import Kernel, RuntimeFolder
from noronha.tools.notebook import NotebookRun, NotebookRunner, execute

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("nothing_left")]


def outputs(path):
    """Returns the printed text and the tracebacks of an executed notebook."""
    cells = json.loads(Path(path).read_text())["cells"]
    texts = []
    for cell in cells:
        for output in cell.get("outputs", []):
            texts.append("".join(output.get("text", [])) or "".join(output.get("traceback", [])))
    return "\n".join(texts)


@pytest.fixture
def run_in_steps(tmp_path):
    """Returns a function that starts a run which the test can cancel; ends everything afterwards."""
    runtime = RuntimeFolder()
    made = []

    def make(path, **settings):
        kernel = Kernel(sys.executable, runtime=runtime, cwd=path.parent)
        run = NotebookRun(kernel, path, tmp_path / "executed.ipynb", **settings)
        made.append(run)
        return run

    yield make
    for run in made:
        run.kernel.kill()
        run.kernel.disconnect()
    runtime.remove()


PARAMS = {
    "huge": 2**63 + 1,
    "larger": -(10**40),
    "one": 1,
    "half": 1.0,
    "tiny": 1e-300,
    "minus": -0.0,
    "yes": True,
    "no": False,
    "nothing": None,
    "text": 'it\'s "quoted" $HOME `ls` \\n \\ {braces} %s \n\t\r end?',
    "triple": "\"\"\"\n'''",
    "unicode": "naïve Ω 花 🌸 \u2028",
    "empty": "",
    "nested": {"a": [1, 1.0, {"b": [None, True]}], "": {}},
    "list": [],
    "bang": "!ls",
    "magic": "%time",
    "question": "what?",
}


def test_parameters_arrive_unchanged_whatever_their_type(make_notebook, tmp_path):
    path = make_notebook(
        ("one = 'default'", "parameters"),
        f"import json; names = {sorted(PARAMS)!r}\n"
        "json.dump({name: [type(globals()[name]).__name__, repr(globals()[name])] for name in names}, open('seen.json', 'w'))",
    )
    result = execute(path, tmp_path / "executed.ipynb", params_json=json.dumps(PARAMS))
    assert result.succeeded, result
    seen = json.loads((path.parent / "seen.json").read_text())
    assert seen == {name: [type(value).__name__, repr(value)] for name, value in PARAMS.items()}


def test_parameters_without_a_tagged_cell_arrive_with_a_warning(make_notebook, tmp_path):
    warned, shown = [], []
    result = execute(
        make_notebook("print('gamma is', gamma)"),
        tmp_path / "executed.ipynb",
        params_json='{"gamma": 0.5}',
        on_warning=warned.append,
        on_output=shown.append,
    )
    assert result.succeeded
    assert "gamma is 0.5" in "".join(shown)
    assert len(warned) == 1 and "tagged 'parameters'" in warned[0]


@pytest.mark.parametrize(
    "params_json, what",
    [
        ("[1]", "not a JSON object"),
        ("{", "Expecting"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": 1e999}', "too large"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a-b": 1}', "variable"),
        ('{"class": 1}', "variable"),
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", "levels"),
        ('{"a": ' + "[" * 100000, "levels"),
    ],
)
def test_parameters_that_cannot_be_given_are_refused_before_a_kernel_starts(make_notebook, tmp_path, params_json, what):
    result = execute(make_notebook("1"), tmp_path / "executed.ipynb", params_json=params_json, interpreter="/nowhere")
    assert (result.outcome, result.reason) == ("FAILED", "PARAMETERS_INVALID")
    assert what in result.message and "\n" not in result.message


def test_parameters_are_put_after_every_tagged_cell_and_replace_those_of_an_earlier_run(make_notebook, tmp_path):
    path = make_notebook(("a = 1", "parameters"), ("a = 2", "parameters"), "open('seen', 'a').write(f'{a} ')")
    assert execute(path, tmp_path / "once.ipynb", params_json='{"a": 3}').succeeded
    assert execute(tmp_path / "once.ipynb", tmp_path / "again.ipynb", params_json='{"a": 4}', cwd=path.parent).succeeded
    assert (path.parent / "seen").read_text() == "3 4 "
    assert len(json.loads((tmp_path / "again.ipynb").read_text())["cells"]) == 5


def test_cells_are_counted_as_their_author_sees_them(make_notebook, tmp_path):
    """Not the parameters, not an empty cell: the number is that of In [n] in the traceback and in the file."""
    path = make_notebook(("a = 1", "parameters"), "", "print('before')", "1 / 0")
    for params in ("{}", '{"a": 2}'):
        result = execute(path, tmp_path / "executed.ipynb", params_json=params)
        assert (result.cell, result.message) == (3, "Cell 3 raised ZeroDivisionError: division by zero.")
        assert "Cell In[3], line 1" in result.traceback
        cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
        assert [cell["execution_count"] for cell in cells if cell["source"]][-1] == 3


def test_output_that_is_no_text_is_shown_as_far_as_it_can_be(make_notebook, tmp_path):
    shown = []
    path = make_notebook("import os\nos.write(1, b'\\xff\\xfe\\x00 raw\\n')\nprint('\\udcff odd')", "print('the end')")
    result = execute(path, tmp_path / "executed.ipynb", on_output=shown.append)
    assert result.succeeded, result
    for text in ("".join(shown), outputs(tmp_path / "executed.ipynb")):
        assert " raw" in text and " odd" in text and "the end" in text


def test_a_missing_notebook_fails_by_name(tmp_path):
    result = execute(tmp_path / "none.ipynb", tmp_path / "executed.ipynb", interpreter="/nowhere")
    assert (result.outcome, result.reason) == ("FAILED", "NOTEBOOK_NOT_FOUND")
    assert "none.ipynb" in result.message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"nbformat": 4}',
        b'{"nbformat": 9, "cells": []}',
        b"\xff\xfe\x00",
        b'{"nbformat": "4"}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code"}]}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}',
        b"[" * 200000,
    ],
)
def test_a_broken_notebook_fails_and_is_kept_as_it_is(tmp_path, content):
    path = tmp_path / "broken.ipynb"
    path.write_bytes(content)
    result = execute(path, tmp_path / "executed.ipynb")
    assert (result.outcome, result.reason) == ("FAILED", "NOTEBOOK_INVALID"), result
    assert "\n" not in result.message
    assert (tmp_path / "executed.ipynb").read_bytes() == content


@pytest.mark.parametrize(
    "kernelspec, language_info, language",
    [
        ({"name": "ir", "language": "R"}, {"name": "R"}, "R"),
        ({"name": "julia-1.9"}, {"name": "julia"}, "julia"),
        ({"name": "python3", "language": "julia"}, {"name": "python"}, "julia"),
        ({"name": "scala", "language": "Scala\n 2"}, None, "Scala 2"),
    ],
)
def test_a_notebook_in_another_language_is_refused(make_notebook, tmp_path, kernelspec, language_info, language):
    path = make_notebook("open('ran', 'w')", kernelspec=kernelspec, language_info=language_info)
    result = execute(path, tmp_path / "executed.ipynb")
    assert (result.outcome, result.reason) == ("FAILED", "NOTEBOOK_LANGUAGE"), result
    assert result.message == f"note.ipynb is written in {language}; Noronha runs notebooks in Python."
    assert not (path.parent / "ran").exists()
    assert (tmp_path / "executed.ipynb").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "kernelspec, language_info",
    [
        (None, None),
        ({"name": "no-such-kernel"}, None),
        ({"name": "conda-env-r", "language": "Python"}, {"name": "IPython"}),
        ({"name": "pyspark", "language": "python"}, {"name": "pyspark"}),
        ({"language": " "}, {"name": "ipython3"}),
        ({"language": 3}, {"name": ["R"]}),
        ("R", []),
    ],
)
def test_the_language_decides_and_not_what_a_kernel_is_called(tmp_path, kernelspec, language_info):
    path = tmp_path / "note.ipynb"
    metadata = {"kernelspec": kernelspec, "language_info": language_info}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": metadata}))
    assert notebooks.read(path).cells == []


def test_an_old_notebook_format_runs(tmp_path):
    path = tmp_path / "old.ipynb"
    path.write_text(
        json.dumps(
            {
                "nbformat": 3,
                "nbformat_minor": 0,
                "metadata": {"name": ""},
                "worksheets": [
                    {
                        "cells": [
                            {
                                "cell_type": "code",
                                "input": ["open('ran', 'w')"],
                                "language": "python",
                                "outputs": [],
                                "collapsed": False,
                            }
                        ]
                    }
                ],
            }
        )
    )
    assert execute(path, tmp_path / "executed.ipynb").succeeded
    assert (tmp_path / "ran").exists()


def test_an_interpreter_that_is_not_there_or_has_no_kernel_fails_with_its_reason(make_notebook, tmp_path):
    path = make_notebook("1")
    result = execute(path, tmp_path / "executed.ipynb", interpreter="/nowhere/python")
    assert (result.outcome, result.reason) == ("FAILED", "KERNEL_NOT_STARTED")
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'No module named ipykernel_launcher' >&2\nexit 1\n")
    bare.chmod(0o755)
    result = execute(path, tmp_path / "executed.ipynb", interpreter=str(bare))
    assert (result.outcome, result.reason) == ("FAILED", "KERNEL_NOT_STARTED")
    assert "exited with code 1" in result.message and "ipykernel_launcher" in result.message


def test_a_cell_that_raises_fails_with_its_error_and_keeps_the_notebook(make_notebook, tmp_path):
    shown, progress = [], []
    path = make_notebook(
        "print('before')",
        "def f():\n    raise KeyError('gone', 7)\nf()",
        "print('after')",
        kernelspec={"name": "a-kernel-nobody-has", "display_name": "R"},
    )
    result = execute(path, tmp_path / "executed.ipynb", on_output=shown.append, on_progress=progress.append)
    assert (result.outcome, result.reason, result.name, result.cell) == ("FAILED", "CELL_RAISED", "KeyError", 2)
    assert "gone" in result.value and "in f()" in result.traceback and "\x1b" not in result.traceback
    assert "Cell 2 raised KeyError" in result.message
    kept = outputs(tmp_path / "executed.ipynb")
    assert "before" in kept and "KeyError" in kept and "after" not in kept
    assert "KeyError" in "".join(shown)
    assert progress == [pytest.approx(1 / 3)]


def test_a_cell_that_is_allowed_to_raise_does_not_end_the_notebook(make_notebook, tmp_path):
    path = make_notebook(("1/0", "raises-exception"), "print('after')")
    assert execute(path, tmp_path / "executed.ipynb").succeeded
    assert "after" in outputs(tmp_path / "executed.ipynb")


@pytest.mark.parametrize(
    "source, reason, words",
    [
        ("import os; os._exit(0)", "KERNEL_DIED", "exited with code 0"),
        (
            "import os, signal; print('last', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
            "KERNEL_DIED",
            "SIGKILL",
        ),
        ("import sys; sys.exit(3)", "CELL_RAISED", "SystemExit: 3"),
        ("x = input()", "CELL_RAISED", "StdinNotImplementedError"),
        ("def", "CELL_RAISED", "SyntaxError"),
    ],
)
def test_a_kernel_that_ends_early_fails_with_its_reason(make_notebook, tmp_path, source, reason, words):
    path = make_notebook("print('before')", source, "print('after')")
    begun = time.monotonic()
    result = execute(path, tmp_path / "executed.ipynb")
    assert (result.outcome, result.reason) == ("FAILED", reason)
    assert words in result.message
    assert "before" in outputs(tmp_path / "executed.ipynb")
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize("source", ["import sys; sys.exit()", "exit()"])
def test_leaving_with_success_ends_the_notebook_well(make_notebook, tmp_path, source):
    path = make_notebook(source, "open('after', 'w')")
    assert execute(path, tmp_path / "executed.ipynb").succeeded
    assert not (path.parent / "after").exists()


def test_output_is_seen_while_the_cell_runs(make_notebook, tmp_path):
    path = make_notebook(
        "import os, sys, time\nprint('to out')\nprint('to err', file=sys.stderr)\nos.system('echo from a child')\n"
        "while not os.path.exists('seen'): time.sleep(0.02)\n42"
    )
    shown = []

    def see(text):
        shown.append(text)
        if all(words in "".join(shown) for words in ("to out", "to err", "from a child")):
            (path.parent / "seen").touch()

    assert execute(path, tmp_path / "executed.ipynb", on_output=see).succeeded
    assert "".join(shown).endswith("42\n")


@pytest.mark.parametrize(
    "source",
    [
        "for n in range(1_000_000): print(n)",
        "for n in range(20_000): print(n, flush=True)",
        "from IPython.display import display\nfor n in range(3_000): display(n)",
    ],
)
def test_endless_output_is_bounded_in_the_notebook_and_complete_on_the_way(make_notebook, tmp_path, source):
    shown = []
    path = make_notebook(source, "print('the end')")
    assert execute(path, tmp_path / "executed.ipynb", on_output=shown.append).succeeded
    last = int(source.split("range(")[1].split(")")[0].replace("_", "")) - 1
    lines = "".join(shown).split()
    assert lines[:3] == ["0", "1", "2"] and str(last) in lines[-5:] and len(lines) == last + 3
    executed = tmp_path / "executed.ipynb"
    assert executed.stat().st_size < 4 << 20
    kept = outputs(executed)
    assert "the end" in kept
    assert "left out" in kept or last < 100_000
    if "print(" in source:
        assert kept.startswith("0\n1\n") and f"{last}\n" in kept


def test_a_cell_that_never_ends_is_cancelled(make_notebook, run_in_steps, tmp_path):
    path = make_notebook("print('begun')\nimport time\nwhile True: time.sleep(0.05)", "print('after')")
    begun = threading.Event()
    run = run_in_steps(path, on_output=lambda text: begun.set())
    threading.Thread(target=lambda: (begun.wait(60), run.cancel(5)), daemon=True).start()
    run.start()
    result = run.run()
    run.close()
    assert (result.outcome, result.reason) == ("CANCELLED", "CANCELLED")
    assert "begun" in outputs(tmp_path / "executed.ipynb")


def test_a_cell_that_ignores_the_interrupt_is_killed(make_notebook, run_in_steps, tmp_path):
    path = make_notebook(
        "print('begun')\nimport time\nwhile True:\n  try: time.sleep(1)\n  except KeyboardInterrupt: pass"
    )
    begun = threading.Event()
    run = run_in_steps(path, on_output=lambda text: begun.set())
    threading.Thread(target=lambda: (begun.wait(60), run.cancel(0.5)), daemon=True).start()
    run.start()
    assert run.run().outcome == "CANCELLED"
    assert run.kernel.ended() == -signal.SIGKILL
    assert (tmp_path / "executed.ipynb").exists()


def test_a_run_cancelled_before_it_begins_never_runs_a_cell(make_notebook, run_in_steps):
    path = make_notebook("open('ran', 'w')")
    run = run_in_steps(path)
    run.cancel()
    run.start()
    assert run.run().outcome == "CANCELLED"
    run.close(1)
    assert not (path.parent / "ran").exists()


def test_a_kernel_killed_from_outside_is_noticed(make_notebook, run_in_steps):
    begun = threading.Event()
    run = run_in_steps(
        make_notebook("print('begun')\nimport time; time.sleep(600)"), on_output=lambda text: begun.set()
    )
    threading.Thread(target=lambda: (begun.wait(60), os.kill(run.kernel.pid, signal.SIGKILL)), daemon=True).start()
    run.start()
    result = run.run()
    assert result.reason == "KERNEL_DIED" and "SIGKILL" in result.message


def test_what_a_crash_says_is_shown(make_notebook, tmp_path):
    shown = []
    result = execute(
        make_notebook("import ctypes; ctypes.string_at(0)"), tmp_path / "executed.ipynb", on_output=shown.append
    )
    assert result.reason == "KERNEL_DIED" and "SIGSEGV" in result.message
    assert "Segmentation fault" in "".join(shown)


def test_the_kernel_runs_where_and_with_what_it_is_told(make_notebook, tmp_path):
    path = make_notebook(
        "import os, sys, json; json.dump([os.getcwd(), os.environ.get('GREETING'), sys.executable], open('seen', 'w'))"
    )
    place = tmp_path / "elsewhere"
    place.mkdir()
    assert execute(
        path, tmp_path / "executed.ipynb", cwd=place, environment={**os.environ, "GREETING": "a=b c"}
    ).succeeded
    assert json.loads((place / "seen").read_text()) == [str(place), "a=b c", sys.executable]


def test_writing_replaces_whole_files_only(tmp_path, monkeypatch):
    target = tmp_path / "kept.ipynb"
    notebooks.replace(target, b"first")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        notebooks.replace(target, b"second")
    assert target.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["kept.ipynb"]


def test_the_runner_of_1_6_answers_an_exit_code(make_notebook, tmp_path, monkeypatch, capsys):
    make_notebook(("gamma = 1", "parameters"), "print('gamma', gamma)", name="notebooks/train.ipynb")
    make_notebook("raise ValueError('no')", name="notebooks/bad.ipynb")
    monkeypatch.chdir(tmp_path / "app")
    assert NotebookRunner(debug=False)("notebooks/train", {"gamma": True}) == 0
    assert "gamma True" in capsys.readouterr().out
    assert "gamma True" in outputs("train.ipynb")
    assert NotebookRunner(debug=True)("notebooks/bad.ipynb", {}) == 1
    assert "CELL_RAISED" in capsys.readouterr().err


def test_papermill_finds_the_engine(make_notebook, tmp_path):
    import papermill

    path = make_notebook(
        ("gamma = 1", "parameters"),
        "print('gamma', gamma)",
        language_info={"name": "python"},
        kernelspec={"name": "python3", "display_name": "Python"},
    )
    papermill.execute_notebook(
        str(path),
        str(tmp_path / "executed.ipynb"),
        parameters={"gamma": 3},
        progress_bar=False,
        engine_name="noronha_engine",
    )
    assert "gamma 3" in outputs(tmp_path / "executed.ipynb")
    failing = make_notebook(
        "1/0",
        name="failing.ipynb",
        language_info={"name": "python"},
        kernelspec={"name": "python3", "display_name": "Python"},
    )
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        papermill.execute_notebook(
            str(failing), str(tmp_path / "executed.ipynb"), engine_name="noronha_engine", progress_bar=False
        )


def test_importing_the_module_brings_in_nothing_heavy():
    import subprocess

    code = (
        "import sys, noronha.tools.notebook, noronha.tools.kernel\n"
        "print([name for name in ('papermill', 'nbclient', 'nbformat', 'zmq', 'jupyter_client', 'grpc', 'requests', 'asyncio.sslproto')"
        " if name in sys.modules and name != 'asyncio.sslproto'])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
