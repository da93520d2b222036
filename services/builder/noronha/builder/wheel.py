"""The running mesh's own code as a wheel, for the environments of projects.

What a notebook imports has to be of one version with the mesh that it talks to, so it is packed from the modules that
run right now, whether they were installed or are edited in a checkout. Only what clients need goes in.

It requires nothing: what a notebook imports needs the standard library alone, so a project may pin any protobuf, grpcio
or click. One that speaks to the mesh itself, by ``noronha.client``, names what that needs among its own requirements.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from noronha.rpc.errors import FailedPrecondition

DISTRIBUTION = "noronha-dataops"
PACKAGES = ("noronha.v1", "noronha.rpc", "noronha.client", "noronha.tools")
"""Portions of the namespace that go in; none of them imports a server."""


@dataclass(frozen=True)
class Wheel:
    """A wheel in memory."""

    file_name: str
    content: bytes
    digest: str
    """SHA-256 of the content, hexadecimal; the same code gives the same digest."""


def make() -> Wheel:
    """Packs the running code. Raises FailedPrecondition ``NOT_INSTALLED`` when Noronha runs without being installed."""
    try:
        installed = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise FailedPrecondition(
            "Noronha runs without being installed, so it cannot be put into a project's environment; "
            "install it with pip, from its checkout too",
            reason="NOT_INSTALLED",
        ) from error
    version = installed.version
    files = _modules()
    information = f"{DISTRIBUTION.replace('-', '_')}-{version}.dist-info"
    files[f"{information}/METADATA"] = _metadata(version, installed.metadata["Requires-Python"])
    files[f"{information}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: noronha\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{path},sha256={_hash(content)},{len(content)}" for path, content in sorted(files.items())]
    files[f"{information}/RECORD"] = "\n".join([*record, f"{information}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(files.items()):
            entry = zipfile.ZipInfo(path)  # dated 1980, so that the same code gives the same bytes
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    content = buffer.getvalue()
    name = f"{DISTRIBUTION.replace('-', '_')}-{version}-py3-none-any.whl"
    return Wheel(name, content, hashlib.sha256(content).hexdigest())


def _modules() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        specification = importlib.util.find_spec(package)
        if specification is None or not specification.submodule_search_locations:
            raise FailedPrecondition(
                f"{package} is not installed beside the mesh; install {DISTRIBUTION} whole", reason="NOT_INSTALLED"
            )
        for location in specification.submodule_search_locations:
            root = Path(location)
            for path in root.rglob("*"):
                relative = path.relative_to(root)
                if path.is_file() and "__pycache__" not in relative.parts and path.suffix not in (".pyc", ".pyi"):
                    files[f"{package.replace('.', '/')}/{relative.as_posix()}"] = path.read_bytes()
    return files


def _metadata(version: str, python: str | None) -> bytes:
    lines = ["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {version}"]
    if python:
        lines.append(f"Requires-Python: {python}")
    return ("\n".join(lines) + "\n").encode()


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
