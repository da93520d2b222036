"""Notebooks made on the fly, and proof that no process and no folder is left behind."""

import glob
import json
import os

import pytest


def notebook_of(*cells, **metadata):
    """Returns a notebook as a dict; a cell is its source, or (source, tag)."""
    made = []
    for number, cell in enumerate(cells):
        source, tags = cell if isinstance(cell, tuple) else (cell, None)
        made.append(
            {
                "cell_type": "code",
                "id": f"c{number}",
                "metadata": {"tags": [tags]} if tags else {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
        )
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def make_notebook(tmp_path):
    """Writes a notebook and returns its path."""

    def make(*cells, name="note.ipynb", **metadata):
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook_of(*cells, **metadata)))
        return path

    return make


@pytest.fixture
def nothing_left():
    """Fails when the test leaves a child process or a runtime folder behind."""
    children = _children()
    yield
    assert _children() <= children
    assert glob.glob(f"/tmp/nha-run-{os.getpid()}-*") == []


def _children():
    import psutil

    return {one.pid for one in psutil.Process(os.getpid()).children(recursive=True)}


@pytest.fixture
def nothing_left_of():
    """Returns a context at whose end the kernel of a run and all it started must be gone."""
    import contextlib

    import psutil

    @contextlib.contextmanager
    def watch(run):
        family = [psutil.Process(run.kernel.pid), *psutil.Process(run.kernel.pid).children(recursive=True)]
        yield
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []

    return watch
