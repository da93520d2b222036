"""A mesh of real services with a project that is built already, so that only Runner is looked at."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis import places, principals
from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.rpc.dial import dial, new_request_id
from noronha.rpc.errors import NoronhaError
from noronha.runner.supervisor import processes
from noronha.v1 import (
    build_pb2,
    deployment_pb2,
    log_pb2,
    mesh_pb2_grpc,
    metadata_pb2,
    metadata_pb2_grpc,
    model_pb2,
    project_pb2,
    records_pb2,
    records_pb2_grpc,
    resource_pb2,
    router_pb2_grpc,
    runner_pb2,
    runner_pb2_grpc,
    store_pb2_grpc,
    task_status_pb2,
    training_pb2,
)
from tests.waiting import until

ENDED = {task_status_pb2.TaskStatus.SUCCEEDED, task_status_pb2.TaskStatus.FAILED, task_status_pb2.TaskStatus.CANCELLED}


def notebook(*cells: str, parameters: str | None = None) -> str:
    """Returns a notebook's text."""
    made = [] if parameters is None else [(parameters, ["parameters"])]
    made += [(cell, []) for cell in cells]
    return json.dumps(
        {
            "cells": [
                {"cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags}, "execution_count": None,
                 "outputs": [], "source": source}
                for number, (source, tags) in enumerate(made)
            ],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )  # fmt: skip


class TestMesh:
    """A mesh in a process of its own."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.root = folder / "mesh"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.router_port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.builds = 0

    @property
    def address(self) -> str:
        return f"unix:{self.root}/mesh.sock"

    def start(self, *services: str, **environment: str) -> None:
        services = services or ("metadata", "store", "runner", "router")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "noronha.chassis", *services, "--state-dir", str(self.root)],
            env={**os.environ, "NHA_ROUTER__PORT": str(self.router_port), "NHA_RUNNER__GRACE": "3", "HOME": "/nowhere",
                 "NHA_RUNNER__HEARTBEAT_INTERVAL": "0.5", **environment},
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        until(lambda: (self.root / "mesh.sock").exists() or self.process.poll() is not None, "the mesh serves")
        assert self.process.poll() is None
        channel = dial(self.address)
        token = Tokens(principals.load_key(self.root)).mint(Principal(Kind.SERVICE, "test"))
        self.metadata = metadata_pb2_grpc.MetadataStub(channel)
        self.runner = runner_pb2_grpc.RunnerStub(channel)
        self.router = router_pb2_grpc.RouterStub(channel)
        self.mesh = mesh_pb2_grpc.MeshStub(channel)
        self.store = store_pb2_grpc.StoreStub(channel)
        inside = dial(self.address, token=token)
        self.records = records_pb2_grpc.RecordsStub(inside)
        self.routes = router_pb2_grpc.RouterStub(inside)
        until(self._answers, "the mesh answers")

    def _answers(self) -> bool:
        try:
            self.metadata.ListProjects(metadata_pb2.ListProjectsRequest(), timeout=2)
        except NoronhaError:
            return False
        return True

    def kill(self) -> None:
        """Ends the mesh without a word."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        (self.root / "mesh.sock").unlink(missing_ok=True)

    def stop(self) -> None:
        """Ends the mesh with everything that it runs."""
        from noronha.v1 import mesh_pb2

        assert self.process is not None
        if self.process.poll() is None:
            try:
                self.mesh.Shutdown(mesh_pb2.ShutdownRequest(stop_tasks=True), timeout=30)
                self.process.wait(30)
            except (NoronhaError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()

    # -- the project --------------------------------------------------------------------------------------------
    def project(self, name: str = "p") -> None:
        for model in ("m",):
            try:
                self.metadata.CreateModel(
                    metadata_pb2.CreateModelRequest(
                        model_id=model, model=model_pb2.Model(), request_id=new_request_id()
                    )
                )
            except NoronhaError:
                pass
        self.metadata.CreateProject(
            metadata_pb2.CreateProjectRequest(project_id=name, project=project_pb2.Project(models=["models/m"]))
        )

    def build(self, project: str = "p", *, state: int = task_status_pb2.TaskStatus.SUCCEEDED, **notebooks: str) -> str:
        """Records a build of these notebooks as if Builder had made it; returns its name."""
        self.builds += 1
        digest = "sha256:" + hashlib.sha256(json.dumps([self.builds, notebooks]).encode()).hexdigest()
        folder = places.source_folder(self.root, digest)
        folder.mkdir(parents=True)
        for name, text in notebooks.items():
            (folder / f"{name}.ipynb").write_text(text)
        build = build_pb2.Build(
            name=f"projects/{project}/builds/b{self.builds}",
            source=build_pb2.Source(origin=build_pb2.Source.LOCAL),
            status=task_status_pb2.TaskStatus(state=state),
            artifact=build_pb2.Artifact(id=digest, source_digest=digest),
        )
        made = self.records.CreateRecord(records_pb2.CreateRecordRequest(resource=resource_pb2.Resource(build=build)))
        return made.resource.build.name

    # -- trainings ----------------------------------------------------------------------------------------------
    def train(self, text: str, name: str = "", **fields: Any) -> training_pb2.Training:
        """Starts a training of one notebook."""
        request_id = fields.pop("request_id", new_request_id())
        training = training_pb2.Training(build=self.build(train=text), notebook="train", **fields)
        return self.runner.CreateTraining(
            runner_pb2.CreateTrainingRequest(
                parent="projects/p", training_id=name, training=training, request_id=request_id
            )
        )

    def training(self, name: str) -> training_pb2.Training:
        return self.metadata.GetTraining(metadata_pb2.GetTrainingRequest(name=name))

    def ended(self, name: str, seconds: float = 90.0) -> training_pb2.Training:
        def look() -> training_pb2.Training | None:
            try:
                found = self.training(name)
            except NoronhaError:
                return None
            return found if found.status.state in ENDED else None

        return until(look, f"{name} ends", seconds)

    def log(self, name: str, **fields: Any) -> bytes:
        request = log_pb2.TailLogsRequest(name=name, **fields)
        return b"".join(piece.data for piece in self.runner.TailLogs(request, timeout=60))

    def logged(self, name: str, text: bytes, seconds: float = 60.0) -> None:
        until(lambda: text in self.log(name), f"{text!r} in the log of {name}", seconds)

    # -- deployments --------------------------------------------------------------------------------------------
    def deploy(self, text: str, name: str = "d", *, replicas: int = 1, port: int = 0, **spec: Any) -> Any:
        made = deployment_pb2.Deployment(
            spec=deployment_pb2.DeploymentSpec(build=self.build(predict=text), **spec), replicas=replicas, port=port
        )
        return self.runner.CreateDeployment(
            runner_pb2.CreateDeploymentRequest(
                parent="projects/p", deployment_id=name, deployment=made, request_id=new_request_id()
            )
        )

    def deployment(self, name: str) -> deployment_pb2.Deployment:
        return self.metadata.GetDeployment(metadata_pb2.GetDeploymentRequest(name=name))

    def stands(self, name: str, state: str, generation: int = 0, seconds: float = 90.0) -> deployment_pb2.Deployment:
        wanted = deployment_pb2.DeploymentStatus.State.Value(state)
        last: list[Any] = []

        def look() -> deployment_pb2.Deployment | None:
            found = self.deployment(name)
            last[:] = [found.status]
            right = found.status.state == wanted and found.status.observed_generation >= generation
            return found if right else None

        try:
            return until(look, f"{name} is {state}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}") from None

    def replicas(self, name: str) -> list[Any]:
        return list(self.metadata.ListReplicas(metadata_pb2.ListReplicasRequest(parent=name)).replicas)

    # -- what is left -------------------------------------------------------------------------------------------
    def remains(self) -> list[int]:
        """Returns the processes of tasks of this mesh, their supervisors included."""
        tasks = f"{self.root}/runner/tasks/".encode()
        found = []
        for pid in processes.all_pids():
            try:
                parts = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if tasks in parts and not parts.startswith(b"sh\0"):
                found.append(pid)
        return found

    def nothing_remains(self, seconds: float = 30.0) -> None:
        until(lambda: not self.remains(), f"no process of a task is left: {self.remains()}", seconds)


@pytest.fixture(scope="module")
def shared() -> Iterator[TestMesh]:
    """A mesh for all tests of a module."""
    yield from _running()


@pytest.fixture
def own() -> Iterator[TestMesh]:
    """A mesh for one test, which may do with it what it wants."""
    yield from _running()


def _running() -> Iterator[TestMesh]:
    with tempfile.TemporaryDirectory(prefix="nha-test-", ignore_cleanup_errors=True) as name:
        mesh = TestMesh(Path(name))
        mesh.start()
        mesh.project()
        try:
            yield mesh
        finally:
            if mesh.process is None or mesh.process.poll() is not None:
                (mesh.root / "mesh.sock").unlink(missing_ok=True)
                mesh.start()
            mesh.stop()
            mesh.nothing_remains()
            end_envoy(mesh.root)


def end_envoy(root: Path) -> None:
    """Ends a proxy that a mesh which was killed has left."""
    for pid in processes.all_pids():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if str(root).encode() in command and b"envoy" in command:
            processes.kill([pid])
