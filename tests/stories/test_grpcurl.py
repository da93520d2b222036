"""An operator with grpcurl in hand: every service can be listed and called, on the socket and over TCP, by its rules."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis.principals import TABLE

GRPCURL = shutil.which("grpcurl")
pytestmark = pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not on the PATH")

SERVICES = ("Builder", "Mesh", "Metadata", "Records", "Router", "Runner", "Store", "Tasks")
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "Mesh/GetInfo": ({}, ""),
    "Metadata/ListProjects": ({"page_size": 1}, ""),
    "Metadata/GetProject": ({"name": "projects/never"}, "NotFound"),
    "Store/StatBlobs": ({"digests": ["sha256:" + "0" * 64]}, ""),
    "Builder/CancelBuild": ({"name": "projects/never/builds/latest"}, "NotFound"),
    "Runner/CancelTraining": ({"name": "projects/never/trainings/t"}, "NotFound"),
    "Router/GetProxy": ({}, ""),
    # What only services and tasks may call is refused to the owner, by name.
    "Records/ListReferencedDigests": ({}, "PermissionDenied"),
    "Tasks/GetAssignment": ({}, "PermissionDenied"),
}


class Operator:
    """Somebody who calls the mesh by its contract alone, which the server itself describes."""

    def __init__(self, user: Any) -> None:
        self.user = user
        self._tcp = "NHA_MESH__ADDRESS" in user.env
        self._options = ["-plaintext", "-max-time", "30"]
        self._address = str(user.state_dir / "mesh.sock")
        if self._tcp:
            self._address = user.env["NHA_MESH__ADDRESS"]
            token = Path(user.env["NHA_MESH__TOKEN_FILE"]).read_text(encoding="ascii").strip()
            self._options += ["-H", f"authorization: Bearer {token}"]
        else:
            self._options.append("-unix")

    def run(self, service: str, *words: str, data: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Calls the server that carries a service; where that is, the mesh says itself."""
        carried = {"Mesh": "metadata", "Records": "metadata", "Tasks": "runner"}.get(service, service.lower())
        address = self._address
        if self._tcp and carried != "metadata":
            info = json.loads(self.run("Mesh", "noronha.v1.Mesh/GetInfo", data={}).stdout)
            address = next(each["address"] for each in info["services"] if each["name"] == carried)
        body = ["-d", json.dumps(data)] if data is not None else []
        command = [str(GRPCURL), *self._options, *body, address, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module", params=["embedded", "five"])
def target(request: pytest.FixtureRequest) -> str:
    """Both: one process on its socket, and five over TCP."""
    return str(request.param)


@pytest.fixture
def operator(user: Any) -> Operator:
    """Somebody beside a mesh that runs."""
    return Operator(user)


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_listed_and_describes_itself(operator: Operator, service: str) -> None:
    listed = operator.run(service, "list").stdout.split()
    assert f"noronha.v1.{service}" in listed
    methods = set(operator.run(service, "list", f"noronha.v1.{service}").stdout.split())
    assert methods == {path[1:].replace("/", ".") for path in TABLE if path.startswith(f"/noronha.v1.{service}/")}


@pytest.mark.parametrize("service", [each for each in SERVICES if each != "Mesh"])
def test_every_service_is_healthy(operator: Operator, service: str) -> None:
    def serves() -> bool:
        answer = operator.run(service, "grpc.health.v1.Health/Check", data={"service": f"noronha.v1.{service}"})
        return bool(json.loads(answer.stdout) == {"status": "SERVING"})

    operator.user.eventually(f"{service} serves: Router takes a moment longer, its proxy has to listen first", serves, 60)


@pytest.mark.parametrize("call", CALLS)
def test_every_service_can_be_called_or_says_who_may(operator: Operator, call: str) -> None:
    data, refused = CALLS[call]
    answer = operator.run(call.partition("/")[0], f"noronha.v1.{call}", data=data)
    if refused:
        assert f"Code: {refused}" in answer.stderr, answer.stderr
        assert "ErrorInfo" in answer.stderr
    else:
        assert answer.returncode == 0, answer.stderr
        json.loads(answer.stdout)
