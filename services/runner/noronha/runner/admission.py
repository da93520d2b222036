"""Whether what is asked for makes sense, decided before anything is recorded, and the references completed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from google.protobuf import duration_pb2

from noronha.chassis.durations import seconds_of
from noronha.chassis.peers import Peers
from noronha.rpc import json_text, names
from noronha.rpc.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from noronha.runner.workloads import RESERVED, RESERVED_PREFIXES
from noronha.v1 import (
    build_pb2,
    dataset_pb2,
    deployment_pb2,
    health_check_pb2,
    metadata_pb2,
    model_version_pb2,
    mount_pb2,
    project_pb2,
    resources_pb2,
    task_status_pb2,
    training_pb2,
    web_server_pb2,
)

MAX_REPLICAS = 1000
MAX_TIMEOUT = 10 * 365 * 86_400.0
"""Longest time in seconds that a training may be given."""

MAX_VARIABLES_BYTES = 64 << 10
"""Most bytes of names and values of a user's variables: what a process can be started with is bounded."""

_MAX_AMOUNT = 1 << 40
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_TARGETS = ("/app", "/data", "/model", "/tmp", "/logs", "/nha")
_SYSTEM_TARGETS = ("/proc", "/sys", "/dev")


class Inputs(NamedTuple):
    """What a task works with, as Metadata has it."""

    project: project_pb2.Project
    datasets: Sequence[dataset_pb2.Dataset]
    model_versions: Sequence[model_version_pb2.ModelVersion]

    @property
    def models(self) -> list[str]:
        """Models that the task may read and publish to: the project's, and those of what it was given."""
        given = [each.name for each in self.datasets] + [each.name for each in self.model_versions]
        return sorted({*self.project.models, *(names.parent_of(names.parse(each)) for each in given)})


class Admission:
    """Checks requests against the records and the settings."""

    def __init__(self, peers: Peers, allowed_mounts: Sequence[str]) -> None:
        self._peers = peers
        self._allowed_mounts = [os.path.realpath(os.path.expanduser(each)) for each in allowed_mounts]

    async def training(self, parent: str, asked: training_pb2.Training) -> tuple[training_pb2.Training, Inputs]:
        """Returns a training as it is to be recorded, without its name; see ``Runner.CreateTraining``."""
        project = await self._project(parent)
        if asked.HasField("timeout") and not 0.001 <= seconds_of(asked.timeout) <= MAX_TIMEOUT:
            raise _bad("training.timeout", "must be 1 ms to ten years", "BAD_TIMEOUT")
        if asked.target_deployment:
            names.parse(asked.target_deployment, "deployment", field="training.target_deployment")
        made = training_pb2.Training(
            notebook=notebook_path(asked.notebook, "training.notebook"),
            params_json=_json(asked.params_json, "training.params_json", "BAD_PARAMS"),
            details_json=_json(asked.details_json, "training.details_json", "BAD_JSON"),
            environment=check_environment(asked.environment, "training.environment"),
            mounts=self._mounts(asked.mounts, "training.mounts"),
            target_deployment=asked.target_deployment,
            labels=asked.labels,
        )
        if asked.HasField("resources"):
            made.resources.CopyFrom(check_resources(asked.resources, "training.resources"))
        if asked.HasField("timeout"):
            made.timeout.CopyFrom(asked.timeout)
        build = await self._build(asked.build, project, "training.build")
        datasets = [await self._dataset(each) for each in asked.datasets]
        versions = [await self._version(each, "training.pretrained") for each in asked.pretrained]
        _distinct(datasets, "training.datasets")
        _distinct(versions, "training.pretrained")
        made.build = f"{build.name}@{build.revision}"
        made.build_snapshot.CopyFrom(_without_files(build))
        made.datasets.extend(f"{each.name}@{each.revision}" for each in datasets)
        made.pretrained.extend(f"{each.name}@{each.revision}" for each in versions)
        return made, Inputs(project, datasets, versions)

    async def spec(
        self, parent: str, asked: deployment_pb2.DeploymentSpec
    ) -> tuple[deployment_pb2.DeploymentSpec, Inputs]:
        """Returns what replicas are made of as it is to be recorded; see ``Runner.CreateDeployment``."""
        project = await self._project(parent)
        made = deployment_pb2.DeploymentSpec(
            notebook=notebook_path(asked.notebook or "predict", "spec.notebook"),
            params_json=_json(asked.params_json, "spec.params_json", "BAD_PARAMS"),
            environment=check_environment(asked.environment, "spec.environment"),
            mounts=self._mounts(asked.mounts, "spec.mounts"),
        )
        if asked.HasField("resources"):
            made.resources.CopyFrom(check_resources(asked.resources, "spec.resources"))
        if asked.HasField("health_check"):
            made.health_check.CopyFrom(check_health_check(asked.health_check, "spec.health_check"))
        if asked.HasField("web_server"):
            made.web_server.CopyFrom(check_web_server(asked.web_server, "spec.web_server"))
        build = await self._build(asked.build, project, "spec.build")
        versions = [await self._version(each, "spec.model_versions") for each in asked.model_versions]
        _distinct(versions, "spec.model_versions")
        made.build = f"{build.name}@{build.revision}"
        made.build_snapshot.CopyFrom(_without_files(build))
        for version in versions:
            made.model_versions.append(f"{version.name}@{version.revision}")
            kept = made.model_version_snapshots.add()
            kept.CopyFrom(version)
            for field in ("files", "training_snapshot", "dataset_snapshot", "pretrained_snapshot"):
                kept.ClearField(field)
        return made, Inputs(project, [], versions)

    async def inputs(self, project: str, datasets: Iterable[str], versions: Iterable[str]) -> Inputs:
        """Returns again what a recorded task works with."""
        found = await self._peers.metadata.GetProject(metadata_pb2.GetProjectRequest(name=project))
        return Inputs(
            found,
            [await self._peers.metadata.GetDataset(metadata_pb2.GetDatasetRequest(name=each)) for each in datasets],
            [
                await self._peers.metadata.GetModelVersion(metadata_pb2.GetModelVersionRequest(name=each))
                for each in versions
            ],
        )

    # ------------------------------------------------------------------------------------------- references

    async def _project(self, parent: str) -> project_pb2.Project:
        name = names.parse(parent, "project", field="parent")
        project: project_pb2.Project = await self._peers.metadata.GetProject(
            metadata_pb2.GetProjectRequest(name=str(name))
        )
        return project

    async def _build(self, name: str, project: project_pb2.Project, field: str) -> build_pb2.Build:
        if not name:
            raise _bad(field, "must name the build to run in", "BUILD_MISSING")
        parsed = names.parse(name, "build", field=field)
        if names.parent_of(parsed) != project.name:
            raise _bad(field, f"{name} belongs to another project than {project.name}", "WRONG_PROJECT")
        try:
            build: build_pb2.Build = await self._peers.metadata.GetBuild(metadata_pb2.GetBuildRequest(name=name))
        except NotFound as error:
            raise NotFound(f"{name} does not exist; build the project under that tag first", name=name) from error
        if build.status.state != task_status_pb2.TaskStatus.SUCCEEDED:
            state = task_status_pb2.TaskStatus.State.Name(build.status.state)
            raise FailedPrecondition(
                f"{build.name}@{build.revision} is {state}, so nothing can run in it; build the project again",
                reason="BUILD_NOT_READY", name=build.name, revision=build.revision, state=state,
            )  # fmt: skip
        return build

    async def _dataset(self, name: str) -> dataset_pb2.Dataset:
        names.parse(name, "dataset", field="training.datasets")
        found: dataset_pb2.Dataset = await self._peers.metadata.GetDataset(metadata_pb2.GetDatasetRequest(name=name))
        _stored(found.stored, f"{found.name}@{found.revision}")
        return found

    async def _version(self, name: str, field: str) -> model_version_pb2.ModelVersion:
        names.parse(name, "model_version", field=field)
        found: model_version_pb2.ModelVersion = await self._peers.metadata.GetModelVersion(
            metadata_pb2.GetModelVersionRequest(name=name)
        )
        _stored(found.stored, f"{found.name}@{found.revision}")
        return found

    def _mounts(self, mounts: Iterable[mount_pb2.Mount], field: str) -> list[mount_pb2.Mount]:
        checked: list[mount_pb2.Mount] = []
        for index, mount in enumerate(mounts):
            at = f"{field}[{index}]"
            target = _target(mount.target, at)
            if any(target == each.target for each in checked):
                raise _bad(f"{at}.target", f"{target} is mounted twice", "BAD_MOUNT")
            if not mount.source or "\0" in mount.source:
                raise _bad(f"{at}.source", "must be an absolute path or the name of a volume", "BAD_MOUNT")
            source = mount.source
            if source.startswith("/"):
                # Resolved here and now: what is allowed is a place, not a spelling of it.
                source = os.path.realpath(source)
                allowed = self._allowed_mounts
                if not any(source == each or source.startswith(each.rstrip("/") + "/") for each in allowed):
                    raise PermissionDenied(
                        f"{mount.source} may not be mounted; mesh.allowed_mounts says what may",
                        reason="MOUNT_NOT_ALLOWED", source=mount.source,
                    )  # fmt: skip
            checked.append(mount_pb2.Mount(source=source, target=target, read_only=mount.read_only))
        return checked


def check_replicas(replicas: int) -> int:
    """Returns a number of replicas. Raises InvalidArgument ``BAD_REPLICAS``."""
    if not 0 <= replicas <= MAX_REPLICAS:
        raise _bad("replicas", f"must be 0 to {MAX_REPLICAS}, not {replicas}", "BAD_REPLICAS")
    return replicas


def check_port(port: int) -> int:
    """Returns a port, 0 for none. Raises InvalidArgument ``BAD_PORT``."""
    if not 0 <= port <= 65535:
        raise _bad("port", f"must be 1 to 65535, or 0 for none, not {port}", "BAD_PORT")
    return port


def notebook_path(path: str, field: str) -> str:
    """Returns a notebook's path inside its project, with ``.ipynb``. Raises InvalidArgument ``BAD_NOTEBOOK``."""
    if not path:
        raise _bad(field, "must name the notebook to run", "BAD_NOTEBOOK")
    full = path if path.endswith(".ipynb") else f"{path}.ipynb"
    inside = not any(part in ("", ".", "..") for part in full.split("/"))
    if not inside or not full.isprintable() or len(full.encode("utf-8", "replace")) > 1024:
        raise _bad(field, f"{path[:80]!r} is not a relative path inside the project", "BAD_NOTEBOOK")
    return full


def check_environment(variables: Mapping[str, str], field: str) -> Mapping[str, str]:
    """Returns a user's variables. Raises InvalidArgument ``BAD_ENVIRONMENT``, listing every one that is wrong."""
    violations = []
    for name, value in sorted(variables.items()):
        if not _VARIABLE.fullmatch(name):
            violations.append((f"{field}[{name[:80]!r}]", "is no name of a variable: letters, digits and _ only"))
        elif name in RESERVED or name.startswith(RESERVED_PREFIXES):
            violations.append((f"{field}[{name!r}]", "is set by Noronha itself; choose another name"))
        elif "\0" in value:
            violations.append((f"{field}[{name!r}]", "holds a NUL character"))
    size = sum(len(name) + len(value.encode("utf-8", "replace")) for name, value in variables.items())
    if size > MAX_VARIABLES_BYTES:
        violations.append((field, f"has more than {MAX_VARIABLES_BYTES} bytes"))
    if violations:
        path, why = violations[0]
        raise InvalidArgument(f"{path} {why}", reason="BAD_ENVIRONMENT", violations=violations)
    return variables


def check_resources(resources: resources_pb2.Resources, field: str) -> resources_pb2.Resources:
    """Returns resources. Raises InvalidArgument ``BAD_RESOURCES``."""
    violations = []
    for part in ("requests", "limits"):
        amount = getattr(resources, part)
        for unit in ("cpu_milli", "memory_mb"):
            value = getattr(amount, unit)
            if not 0 <= value <= _MAX_AMOUNT:
                violations.append((f"{field}.{part}.{unit}", f"must be 0 (not asked for) or more, not {value}"))
    for unit in ("cpu_milli", "memory_mb"):
        request, limit = getattr(resources.requests, unit), getattr(resources.limits, unit)
        if 0 < limit < request:
            violations.append((f"{field}.requests.{unit}", f"asks for {request}, more than its limit of {limit}"))
    if violations:
        path, why = violations[0]
        raise InvalidArgument(f"{path} {why}", reason="BAD_RESOURCES", violations=violations)
    return resources


def check_health_check(check: health_check_pb2.HealthCheck, field: str) -> health_check_pb2.HealthCheck:
    """Returns a health check. Raises InvalidArgument ``BAD_HEALTH_CHECK``."""

    def wrong(duration: duration_pb2.Duration, least: int) -> bool:
        return not least / 1000 <= seconds_of(duration) <= 86_400

    violations = []
    if check.HasField("start_period") and wrong(check.start_period, 0):
        violations.append((f"{field}.start_period", "must be 0 s to a day"))
    if check.HasField("interval") and wrong(check.interval, 1):
        violations.append((f"{field}.interval", "must be 1 ms to a day"))
    if check.HasField("timeout") and wrong(check.timeout, 1):
        violations.append((f"{field}.timeout", "must be 1 ms to a day"))
    if check.retries < 0:
        violations.append((f"{field}.retries", "must not be negative"))
    if violations:
        path, why = violations[0]
        raise InvalidArgument(f"{path} {why}", reason="BAD_HEALTH_CHECK", violations=violations)
    return check


def check_web_server(server: web_server_pb2.WebServer, field: str) -> web_server_pb2.WebServer:
    """Returns the settings of a web server. Raises InvalidArgument ``BAD_WEB_SERVER``."""
    json_text.read(server.extra_conf_json, f"{field}.extra_conf_json", reason="BAD_WEB_SERVER")
    if not 0 <= server.threads_number <= 10_000:
        raise _bad(f"{field}.threads_number", f"must be 0 to 10000, not {server.threads_number}", "BAD_WEB_SERVER")
    return server


def _target(target: str, field: str) -> str:
    plain = os.path.normpath(target) if target.startswith("/") and "\0" not in target else ""
    plain = "/" + plain.lstrip("/") if plain else ""
    if not plain or plain == "/" or ".." in target.split("/"):
        raise _bad(f"{field}.target", f"{target[:80]!r} is no absolute path of a folder inside the task", "BAD_MOUNT")
    if plain in _OWN_TARGETS or any(plain == each or plain.startswith(each + "/") for each in _SYSTEM_TARGETS):
        raise _bad(f"{field}.target", f"{plain} belongs to the task itself; mount below or beside it", "BAD_MOUNT")
    return plain


def _json(text: str, field: str, reason: str) -> str:
    json_text.read(text, field, reason=reason)
    return text or "{}"


def _stored(stored: bool, name: str) -> None:
    if not stored:
        raise FailedPrecondition(
            f"{name} was recorded without its files, so no task can use it; publish it again with them",
            reason="NOT_STORED", name=name,
        )  # fmt: skip


def _distinct(found: Sequence[dataset_pb2.Dataset] | Sequence[model_version_pb2.ModelVersion], field: str) -> None:
    seen: set[str] = set()
    for each in found:
        if each.name in seen:
            raise _bad(field, f"{each.name} is named twice, and a task has one place for it", "NAMED_TWICE")
        seen.add(each.name)


def _without_files(build: build_pb2.Build) -> build_pb2.Build:
    kept = build_pb2.Build()
    kept.CopyFrom(build)
    kept.source.ClearField("files")
    return kept


def _bad(field: str, why: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {why}", reason=reason, violations=[(field, why)], field=field)
