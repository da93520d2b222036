"""A training of a notebook that does nothing, over the papermill command on the same notebook."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from measure import BIN, Row, in_turn, private_mesh, row, run, seconds


def notebook(path: Path, *sources: str) -> None:
    """Writes a notebook of code cells, the first tagged ``parameters``."""
    cells = [
        {
            "cell_type": "code", "id": f"c{number}", "execution_count": None, "outputs": [], "source": source,
            "metadata": {"tags": ["parameters"]} if number == 0 else {},
        }
        for number, source in enumerate(sources)
    ]  # fmt: skip
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}))


def project(home: Path) -> Path:
    """Writes a project without requirements and returns its folder."""
    folder = home / "project"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM noronhadataops/noronha:latest\nADD . ${APP_HOME}\n")
    (folder / "requirements.txt").write_text("")
    return folder


@row("training")
def training() -> list[Row]:
    """Warm: the project is built and has been trained once."""
    with private_mesh() as bench:
        folder = project(bench.home)
        notebook(folder / "notebooks" / "train.ipynb", "a = 1", "b = a")
        bench.nha("proj", "new", "--name", "bench", "--home-dir", str(folder))
        bench.nha("proj", "build", "--proj", "bench", "--from-home")
        serial = [0]

        def ours() -> float:
            serial[0] += 1
            return seconds(
                lambda: bench.nha(
                    "train", "new", "--proj", "bench", "--name", f"t{serial[0]}", "--nb", "notebooks/train", "--params", '{"a": 2}'
                )
            )

        def theirs() -> float:
            return seconds(
                lambda: run(
                    str(BIN / "papermill"), "notebooks/train.ipynb", str(bench.home / "out.ipynb"), "-p", "a", "2",
                    "-k", "python3", env=bench.env, cwd=folder,
                )
            )  # fmt: skip

        pair = in_turn(ours, theirs, 9)
    return [
        Row(
            "training of a no-op notebook over the papermill command", "at most 0.3 s more", f"{pair.difference:+.2f} s",
            pair.difference <= 0.3, "", f"{statistics.median(pair.ours):.2f} s", pair.spread(),
        )
    ]  # fmt: skip
