"""The wheel of the running code is one that installers take, and the same for the same code."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

from noronha.builder import wheel


def test_it_is_the_same_for_the_same_code() -> None:
    assert wheel.make() == wheel.make()


def test_it_holds_what_clients_need_and_no_server() -> None:
    names = zipfile.ZipFile(io.BytesIO(wheel.make().content)).namelist()
    assert "noronha/rpc/errors.py" in names
    assert "noronha/v1/store_pb2.py" in names
    assert any(name.startswith("noronha/tools/") for name in names)
    assert "noronha/__init__.py" not in names
    assert not [name for name in names if name.startswith(("noronha/chassis", "noronha/builder", "noronha/metadata"))]
    assert not [name for name in names if "__pycache__" in name]


def test_its_record_names_every_file_and_it_requires_nothing() -> None:
    archive = zipfile.ZipFile(io.BytesIO(wheel.make().content))
    (information,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    recorded = {line.split(",")[0] for line in archive.read(f"{information}/RECORD").decode().splitlines()}
    assert recorded == set(archive.namelist())
    metadata = archive.read(f"{information}/METADATA").decode()
    assert "Name: noronha-dataops" in metadata
    assert "Requires-Dist" not in metadata


def test_what_notebooks_import_needs_the_standard_library_alone(tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(wheel.make().content)).extractall(tmp_path)
    script = (
        "import importlib.util, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "assert not [name for name in ('yaml', 'grpc', 'click', 'google') if importlib.util.find_spec(name)]\n"
        "from noronha.tools import channel, gunicorn_server, publish, serving, shortcuts\n"
        "from noronha.tools.errors import ServingError\n"
        "serving.OnlinePredict(predict_func=print), serving.LazyModelServer(print, load_model_func=print, model_name='m')\n"
        "try:\n"
        "    gunicorn_server.settings({})\n"
        "except ServingError as error:\n"
        "    print(error.reason, error)\n"
        "try:\n"
        "    publish.Publisher()()\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    # Isolated and without site, an interpreter finds nothing that was installed.
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, tmp_path], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    refused, outside = answer.stdout.splitlines()
    assert refused.startswith("GUNICORN_UNUSABLE gunicorn, which is not installed, cannot serve on Python ")
    assert outside == "OutsideTaskError"
