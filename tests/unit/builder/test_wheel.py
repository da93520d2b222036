"""The wheel of the running code is one that installers take, and the same for the same code."""

from __future__ import annotations

import io
import zipfile

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


def test_its_record_names_every_file_and_its_metadata_only_the_base() -> None:
    archive = zipfile.ZipFile(io.BytesIO(wheel.make().content))
    (information,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    recorded = {line.split(",")[0] for line in archive.read(f"{information}/RECORD").decode().splitlines()}
    assert recorded == set(archive.namelist())
    metadata = archive.read(f"{information}/METADATA").decode()
    assert "Requires-Dist: grpcio" in metadata
    assert "extra" not in metadata
    assert "nbclient" not in metadata
