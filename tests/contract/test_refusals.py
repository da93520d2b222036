"""What every rpc of a mesh refuses alike: bad names, forged pages, filters outside the language, stale etags, and request
ids that are used for something else. Each table is held to the contract: an rpc that is in none of its rows fails."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis import principals
from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.rpc.dial import dial, new_request_id
from noronha.rpc.errors import Aborted, AlreadyExists, InvalidArgument, NoronhaError, NotFound, Unimplemented
from noronha.v1 import build_pb2, resource_pb2, store_pb2, training_pb2
from noronha.v1.task_status_pb2 import TaskStatus
from tests.waiting import until

SERVICES = ("Metadata", "Store", "Builder", "Runner", "Router", "Records")

NAMES = [
    "a_b", "-a", "a--b", "a b", "x:y", "../../x", "", "a" * 65, "\u00e9", "e\u0301", "\u0430", "\uff41", "a\n", "\na", "a\0",
    "%2e%2e", "a/b", "\u202ea",
]  # fmt: skip
"""Ids that nothing may have."""

TAGS = [*(each for each in NAMES if each not in ("a_b", "a--b", "a" * 65)), "a" * 129, ".a"]
"""Tags that no build may have: theirs is the grammar of Docker."""

LATER = {
    "Runner.CreateNotebook", "Runner.CancelNotebook", "Runner.DeleteNotebook", "Runner.SetIsland", "Runner.DeleteIsland",
}  # fmt: skip
"""Calls that this mesh does not answer yet, whatever they are asked."""


class Mesh:
    """A mesh of all services in one process, and how it is called."""

    def __init__(self, address: str, root: Path) -> None:
        self.root = root
        tokens = Tokens(principals.load_key(root))
        owner, service = Principal(Kind.OWNER, "owner"), Principal(Kind.SERVICE, "test")
        self._channels = {kind: dial(address, token=tokens.mint(each)) for kind, each in
                          {"owner": owner, "service": service}.items()}  # fmt: skip

    def call(self, rpc: str, request: Any) -> Any:
        """Calls an rpc, named ``Service.Method``, and returns its answer, of a stream the first."""
        service, method = rpc.split(".")
        caller = "service" if service == "Records" or method == "WaitForRoutes" else "owner"
        module = importlib.import_module(f"noronha.v1.{service.lower()}_pb2_grpc")
        answer = getattr(getattr(module, f"{service}Stub")(self._channels[caller]), method)(request, timeout=60)
        return next(answer, None) if METHODS[rpc].server_streaming else answer

    def ask(self, rpc: str, **fields: Any) -> Any:
        return self.call(rpc, request(rpc, **fields))

    def upload(self, data: bytes) -> tuple[str, str]:
        """Uploads one blob; returns the upload and its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        opened = self.ask("Store.OpenUpload", entries=[store_pb2.Blob(digest=digest, size_bytes=len(data))])
        if opened.missing:
            chunk = store_pb2.WriteBlobsRequest(upload=opened.upload, digest=digest, data=data, crc32=zlib.crc32(data))
            self.call("Store.WriteBlobs", iter([chunk]))
        return opened.upload, digest

    def everything(self) -> dict[str, list[Any]]:
        """Returns every record that users see."""
        kinds = ("Projects", "Models", "ModelVersions", "Datasets", "Aliases", "Builds", "Trainings", "Deployments", "Chests")
        found = {}
        for kind in kinds:
            rpc = f"Metadata.List{kind}"
            found[kind] = list(getattr(self.ask(rpc, **listing(rpc)), FIELDS.get(kind, kind.lower())))
        return found


FIELDS = {"ModelVersions": "model_versions"}


def _methods() -> dict[str, Any]:
    found = {}
    for service in SERVICES:
        module = importlib.import_module(f"noronha.v1.{service.lower()}_pb2")
        for method in module.DESCRIPTOR.services_by_name[service].methods:
            found[f"{service}.{method.name}"] = method
    return found


METHODS = _methods()


def fields_of(rpc: str) -> set[str]:
    return set(METHODS[rpc].input_type.fields_by_name)


def request(rpc: str, **fields: Any) -> Any:
    return METHODS[rpc].input_type._concrete_class(**fields)


def put(message: Any, path: str, value: str) -> None:
    """Sets a field by its path; ``[]`` at the end adds to a repeated one."""
    *outer, last = path.split(".")
    for part in outer:
        message = getattr(message, part)
    if last.endswith("[]"):
        getattr(message, last[:-2]).append(value)
    else:
        setattr(message, last, value)


def refused(kind: type[NoronhaError], reason: str, work: Callable[[], Any], what: str) -> None:
    try:
        answer = work()
    except NoronhaError as error:
        assert (type(error), error.reason) == (kind, reason), f"{what}: {error!r}"
        assert "\n" not in error.message, what
    else:
        raise AssertionError(f"{what} was answered: {str(answer)[:200]}")


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    folder = Path(tempfile.mkdtemp(prefix="nha-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        router_port = probe.getsockname()[1]
    address = folder / "address"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "noronha.chassis", "--listen", "127.0.0.1:0", "--state-dir", str(folder / "mesh"),
         "--address-file", str(address)],
        env={**clean, "HOME": str(folder), "NHA_ROUTER__PORT": str(router_port)},
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: address.exists() or server.poll() is not None, "the mesh serves")
        assert server.poll() is None
        made = Mesh(address.read_text().strip(), folder / "mesh")
        _fill(made)
        yield made
        from noronha.v1 import mesh_pb2, mesh_pb2_grpc

        mesh_pb2_grpc.MeshStub(made._channels["owner"]).Shutdown(mesh_pb2.ShutdownRequest(stop_tasks=True))
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _fill(mesh: Mesh) -> None:
    """Makes one of each kind: model m, its version v, dataset d and alias a; project p, its build b, training t and
    deployment d with traffic; chest c."""
    mesh.ask("Metadata.CreateModel", model_id="m")
    mesh.ask("Metadata.CreateModel", model_id="n")
    mesh.ask("Metadata.CreateModelVersion", parent="models/m", model_version_id="v")
    mesh.ask("Metadata.CreateDataset", parent="models/m", dataset_id="d")
    mesh.ask("Metadata.CreateAlias", parent="models/m", alias_id="a", alias={"model_version": "models/m/versions/v"})
    mesh.ask("Metadata.CreateProject", project_id="p")
    mesh.ask("Metadata.CreateChest", chest_id="c")
    nothing = f"sha256:{hashlib.sha256().hexdigest()}"
    succeeded = TaskStatus(state=TaskStatus.SUCCEEDED)
    build = build_pb2.Build(
        name="projects/p/builds/b", source=build_pb2.Source(origin=build_pb2.Source.LOCAL), status=succeeded,
        artifact=build_pb2.Artifact(id=nothing, source_digest=nothing),
    )  # fmt: skip
    training = training_pb2.Training(name="projects/p/trainings/t", notebook="train", status=succeeded)
    for resource in (resource_pb2.Resource(build=build), resource_pb2.Resource(training=training)):
        mesh.ask("Records.CreateRecord", resource=resource)
    spec = {"build": "projects/p/builds/b"}
    mesh.ask("Runner.CreateDeployment", parent="projects/p", deployment_id="d", deployment={"spec": spec, "replicas": 0})
    until(lambda: mesh.ask("Router.GetProxy").connected, "the proxy runs")
    mesh.ask("Router.UpdateTraffic", traffic={"name": "projects/p/deployments/d/traffic", "sticky_key": "?user"})


# --------------------------------------------------------------------------------------------------------------- names

NAMED = {
    "Metadata.GetProject": "name=projects/{}",
    "Metadata.CreateProject": "project_id={} project.models[]=models/{}",
    "Metadata.UpdateProject": "project.name=projects/{}",
    "Metadata.DeleteProject": "name=projects/{}",
    "Metadata.GetModel": "name=models/{}",
    "Metadata.CreateModel": "model_id={}",
    "Metadata.UpdateModel": "model.name=models/{}",
    "Metadata.DeleteModel": "name=models/{}",
    "Metadata.GetModelVersion": "name=models/m/versions/{}",
    "Metadata.ListModelVersions": "parent=models/{}",
    "Metadata.CreateModelVersion": "parent=models/{} model_version_id={} model_version.training=projects/p/trainings/{}"
    " model_version.dataset=models/m/datasets/{} model_version.pretrained=models/m/versions/{}",
    "Metadata.PublishModelVersion": "model_version.name=models/m/versions/{}",
    "Metadata.DeleteModelVersion": "name=models/{}/versions/v",
    "Metadata.GetDataset": "name=models/m/datasets/{}",
    "Metadata.ListDatasets": "parent=models/{}",
    "Metadata.CreateDataset": "parent=models/{} dataset_id={}",
    "Metadata.PublishDataset": "dataset.name=models/m/datasets/{}",
    "Metadata.DeleteDataset": "name=models/m/datasets/{}",
    "Metadata.GetAlias": "name=models/m/aliases/{}",
    "Metadata.ListAliases": "parent=models/{}",
    "Metadata.CreateAlias": "parent=models/{} alias_id={} alias.model_version=models/m/versions/{}",
    "Metadata.MoveAlias": "name=models/m/aliases/{} expected_model_version=models/m/versions/{}@1"
    " model_version=models/m/versions/{}",
    "Metadata.DeleteAlias": "name=models/m/aliases/{}",
    "Metadata.GetBuild": "name=projects/p/builds/{}",
    "Metadata.ListBuilds": "parent=projects/{}",
    "Metadata.GetTraining": "name=projects/p/trainings/{}",
    "Metadata.ListTrainings": "parent=projects/{}",
    "Metadata.GetDeployment": "name=projects/p/deployments/{}",
    "Metadata.ListDeployments": "parent=projects/{}",
    "Metadata.GetDeploymentRevision": "name=projects/p/deployments/{}/revisions/1",
    "Metadata.ListDeploymentRevisions": "parent=projects/p/deployments/{}",
    "Metadata.ListReplicas": "parent=projects/p/deployments/{}",
    "Metadata.GetTraffic": "name=projects/p/deployments/{}/traffic",
    "Metadata.GetNotebook": "name=projects/p/notebooks/{}",
    "Metadata.ListNotebooks": "parent=projects/{}",
    "Metadata.GetChest": "name=chests/{}",
    "Metadata.CreateChest": "chest_id={}",
    "Metadata.UpdateChest": "chest.name=chests/{}",
    "Metadata.DeleteChest": "name=chests/{}",
    "Metadata.GetIsland": "name=islands/{}",
    "Metadata.GetLineage": "name=models/{}",
    "Metadata.Watch": "names[]=models/m/versions/{}",
    "Builder.CreateBuild": "parent=projects/{} build_id={}",
    "Builder.CancelBuild": "name=projects/p/builds/{}",
    "Builder.DeleteBuild": "name=projects/p/builds/{}",
    "Builder.TailLogs": "name=projects/p/builds/{}",
    "Runner.CreateTraining": "parent=projects/{} training_id={}",
    "Runner.CancelTraining": "name=projects/p/trainings/{}",
    "Runner.DeleteTraining": "name=projects/p/trainings/{}",
    "Runner.CreateDeployment": "parent=projects/{} deployment_id={} deployment.spec.build=projects/p/builds/{}",
    "Runner.UpdateDeployment": "deployment.name=projects/p/deployments/{}",
    "Runner.RollbackDeployment": "name=projects/p/deployments/{}",
    "Runner.DeleteDeployment": "name=projects/p/deployments/{}",
    "Runner.TailLogs": "name=projects/p/trainings/{}",
    "Router.UpdateTraffic": "traffic.name=projects/p/deployments/{}/traffic",
    "Router.DeleteTraffic": "name=projects/p/deployments/{}/traffic",
    "Router.WaitForRoutes": "deployment=projects/p/deployments/{} present[]=projects/p/deployments/d/replicas/{}"
    " absent[]=projects/p/deployments/d/replicas/{}",
    "Records.CreateRecord": "resource.training.name=projects/p/trainings/{}",
    "Records.UpdateRecord": "resource.training.name=projects/p/trainings/{}",
    "Records.DeleteRecord": "name=projects/p/trainings/{}",
    "Records.AcquireLease": "name=projects/p/trainings/{}",
    "Records.ReleaseLease": "name=projects/p/trainings/{}",
}
"""Each rpc with the fields of its request that hold a name or an id, ``{}`` where the id stands."""

DRAWN = ("training_id", "deployment_id", "model_version_id", "dataset_id")
"""Ids that the server draws when they are empty."""

THERE = {"models": "m", "projects": "p", "versions": "v", "datasets": "d", "aliases": "a", "builds": "b", "trainings": "t",
         "deployments": "d", "replicas": "r"}  # fmt: skip


def _good(pattern: str) -> str:
    return pattern.format(THERE.get(pattern.partition("{}")[0].rstrip("/").rpartition("/")[2], "x"))


def test_every_rpc_that_takes_a_name_has_its_row() -> None:
    first = {rpc: method.input_type.fields[0] for rpc, method in METHODS.items() if method.input_type.fields}
    taking = {
        rpc for rpc in METHODS
        if fields_of(rpc) & {"name", "names", "parent", "deployment"}
        or any(field.endswith("_id") and field != "request_id" for field in fields_of(rpc))
        or (rpc in first and first[rpc].message_type and "name" in first[rpc].message_type.fields_by_name)
        or "resource" in fields_of(rpc)
    }  # fmt: skip
    assert set(NAMED) == taking - LATER


@pytest.mark.parametrize("rpc", NAMED)
def test_names_outside_the_grammar_are_refused(mesh: Mesh, rpc: str) -> None:
    before = mesh.everything()
    places = [place.partition("=")[::2] for place in NAMED[rpc].split()]
    for place, pattern in places:
        of_build = place == "build_id" or "/builds/{}" in pattern
        for bad in TAGS if of_build else NAMES:
            if not bad and place in DRAWN:
                continue
            asked = request(rpc)
            for other, its in places:
                put(asked, other, its.format(bad) if other == place else _good(its))
            if rpc == "Builder.CreateBuild":
                asked.build.source.origin = build_pb2.Source.LOCAL
            if rpc == "Records.AcquireLease":
                asked.holder = "somebody"
            what = f"{place}={pattern.format(bad)!a}"
            refused(InvalidArgument, "BAD_NAME", lambda asked=asked: mesh.call(rpc, asked), what)
    assert mesh.everything() == before


def test_names_of_uploads_and_digests_lead_nowhere(mesh: Mesh) -> None:
    for bad in (*NAMES, "a" * 32):
        refused(NotFound, "NOT_FOUND", lambda bad=bad: mesh.ask("Store.GetUpload", upload=bad), ascii(bad))
        mesh.ask("Store.AbortUpload", upload=bad)  # harmless, as what is asked for is so already
        refused(InvalidArgument, "BAD_DIGEST", lambda bad=bad: mesh.ask("Store.ReadBlob", digest=bad), ascii(bad))
        refused(InvalidArgument, "BAD_DIGEST", lambda bad=bad: mesh.ask("Store.StatBlobs", digests=[bad]), ascii(bad))


@pytest.mark.parametrize("rpc", sorted(LATER))
def test_what_is_not_there_yet_says_so(mesh: Mesh, rpc: str) -> None:
    refused(Unimplemented, "NOT_IMPLEMENTED", lambda: mesh.ask(rpc), rpc)


# --------------------------------------------------------------------------------------------------------------- lists

PARENTS = {
    "ModelVersions": "models/m", "Datasets": "models/m", "Aliases": "models/m", "Builds": "projects/p",
    "Trainings": "projects/p", "Deployments": "projects/p", "Notebooks": "projects/p",
    "DeploymentRevisions": "projects/p/deployments/d", "Replicas": "projects/p/deployments/d",
}  # fmt: skip
LISTS = sorted(rpc for rpc in METHODS if "page_token" in fields_of(rpc))
FILTERED = sorted(rpc for rpc in METHODS if "filter" in fields_of(rpc))

DANGEROUS = [
    '{"$where": "1"}', '{"name": {"$function": {}}}', '{"$expr": {}}', '{"name": {"$type": 2}}', '{"$comment": "x"}',
    '{"name": {"$regex": "(a+)+$"}}', '{"name": {"$regex": "x", "$options": "i"}}', '{"name.$x": 1}', '{"$or": []}',
    '{"name": {"$in": [{"$where": 1}]}}', '{"name": {"$eq": {"$where": 1}}}', "[]", "1", "{", '{"name": NaN}',
    '{"name": 1, "name": 2}', "db.dropDatabase()", '{"nonsense": 1}', '{"naem": {"$exists": false}}',
]  # fmt: skip
"""Filters outside the language, and such that would match nothing without a word."""


def listing(rpc: str) -> dict[str, Any]:
    """Returns what a list needs to be asked for."""
    kind = rpc.partition(".List")[2]
    if rpc == "Metadata.SearchResources":
        return {"query": "m"}
    if rpc == "Metadata.Watch":
        return {"names": ["models/-", "projects/-"]}
    return {"parent": PARENTS[kind]} if kind in PARENTS else {}


@pytest.mark.parametrize("rpc", LISTS)
def test_page_tokens_that_are_forged_or_of_another_query_are_refused(mesh: Mesh, rpc: str) -> None:
    token = mesh.ask("Metadata.ListModels", page_size=1).next_page_token
    other = mesh.ask("Metadata.ListModels", page_size=1, filter='{"description": ""}').next_page_token
    assert token and other and token != other
    for bad in ("x", "1", "é", "../../x", "' OR 1=1 --", token[::-1], f"{token[:-2]}AA", other, "A" * 100_000):
        refused(InvalidArgument, "BAD_PAGE_TOKEN", lambda bad=bad: mesh.ask(rpc, page_token=bad, **listing(rpc)), bad[:80])
    if rpc != "Metadata.ListModels":
        refused(InvalidArgument, "BAD_PAGE_TOKEN", lambda: mesh.ask(rpc, page_token=token, **listing(rpc)), token)
    refused(InvalidArgument, "BAD_PAGE_SIZE", lambda: mesh.ask(rpc, page_size=-1, **listing(rpc)), "page_size")


@pytest.mark.parametrize("rpc", FILTERED)
def test_filters_outside_the_language_are_refused(mesh: Mesh, rpc: str) -> None:
    for text in DANGEROUS:
        refused(InvalidArgument, "BAD_FILTER", lambda text=text: mesh.ask(rpc, filter=text, **listing(rpc)), text)


# --------------------------------------------------------------------------------------------------------------- etags

STALE: dict[str, dict[str, Any]] = {
    "Metadata.UpdateProject": {"project": {"name": "projects/p", "etag": "stale", "description": "x"}},
    "Metadata.DeleteProject": {"name": "projects/p", "etag": "stale", "force": True},
    "Metadata.UpdateModel": {"model": {"name": "models/m", "etag": "stale", "description": "x"}},
    "Metadata.DeleteModel": {"name": "models/m", "etag": "stale", "force": True},
    "Metadata.DeleteModelVersion": {"name": "models/m/versions/v", "etag": "stale", "force": True},
    "Metadata.DeleteDataset": {"name": "models/m/datasets/d", "etag": "stale", "force": True},
    "Metadata.DeleteAlias": {"name": "models/m/aliases/a", "etag": "stale"},
    "Metadata.UpdateChest": {"chest": {"name": "chests/c", "etag": "stale", "description": "x"}},
    "Metadata.DeleteChest": {"name": "chests/c", "etag": "stale"},
    "Builder.DeleteBuild": {"name": "projects/p/builds/b", "etag": "stale"},
    "Runner.DeleteTraining": {"name": "projects/p/trainings/t", "etag": "stale"},
    "Runner.UpdateDeployment": {
        "deployment": {"name": "projects/p/deployments/d", "etag": "stale", "labels": {"a": "b"}}
    },
    "Runner.DeleteDeployment": {"name": "projects/p/deployments/d", "etag": "stale"},
    "Router.UpdateTraffic": {
        "traffic": {"name": "projects/p/deployments/d/traffic", "etag": "stale", "sticky_key": "?other"}
    },
    "Router.DeleteTraffic": {"name": "projects/p/deployments/d/traffic", "etag": "stale"},
    "Records.UpdateRecord": {
        "resource": {"training": {"name": "projects/p/trainings/t", "etag": "stale", "notebook": "x"}}
    },
    "Records.DeleteRecord": {"name": "projects/p/trainings/t", "etag": "stale"},
}
"""A request with an etag that is not current, for each rpc that takes one."""


def test_every_rpc_that_takes_an_etag_has_its_row() -> None:
    # What is published is numbered, so it names the revision that it follows, not an etag.
    updates = {rpc for rpc in METHODS if rpc.partition(".")[2].startswith("Update")}
    assert set(STALE) == (updates | {rpc for rpc in METHODS if "etag" in fields_of(rpc)}) - LATER


@pytest.mark.parametrize(
    ("rpc", "repeatable"),
    [*((rpc, False) for rpc in STALE), *((rpc, True) for rpc in STALE if "request_id" in fields_of(rpc))],
)
def test_stale_etags_are_refused_and_change_nothing(mesh: Mesh, rpc: str, repeatable: bool) -> None:
    before, traffic = mesh.everything(), mesh.ask("Metadata.GetTraffic", name="projects/p/deployments/d/traffic")
    asked = request(rpc, **STALE[rpc])
    if repeatable:
        asked.request_id = new_request_id()
    for _ in range(2):
        refused(Aborted, "STALE_ETAG", lambda: mesh.call(rpc, asked), rpc)
    assert mesh.everything() == before
    assert mesh.ask("Metadata.GetTraffic", name="projects/p/deployments/d/traffic") == traffic


# --------------------------------------------------------------------------------------------------------- request ids

ONCE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Metadata.CreateProject": ({"project_id": "once"}, {"project_id": "twice"}),
    "Metadata.UpdateProject": (
        {"project": {"name": "projects/p", "description": "1"}}, {"project": {"name": "projects/p", "description": "2"}}
    ),
    "Metadata.CreateModel": ({"model_id": "once"}, {"model_id": "once", "model": {"description": "x"}}),
    "Metadata.UpdateModel": (
        {"model": {"name": "models/m", "description": "1"}}, {"model": {"name": "models/n", "description": "1"}}
    ),
    "Metadata.CreateModelVersion": (
        {"parent": "models/m"}, {"parent": "models/m", "model_version": {"details_json": '{"a": 1}'}}
    ),
    "Metadata.PublishModelVersion": (
        {"model_version": {"name": "models/m/versions/v", "details_json": '{"a": 1}'}},
        {"model_version": {"name": "models/m/versions/v", "details_json": '{"a": 1.0}'}},
    ),
    "Metadata.CreateDataset": ({"parent": "models/m"}, {"parent": "models/n"}),
    "Metadata.PublishDataset": (
        {"dataset": {"name": "models/m/datasets/d", "details_json": '{"a": 1}'}},
        {"dataset": {"name": "models/m/datasets/d"}},
    ),
    "Metadata.CreateAlias": (
        {"parent": "models/m", "alias_id": "once", "alias": {"model_version": "models/m/versions/v"}},
        {"parent": "models/m", "alias_id": "twice", "alias": {"model_version": "models/m/versions/v"}},
    ),
    "Metadata.MoveAlias": (
        {"name": "models/m/aliases/a", "expected_model_version": "models/m/versions/v@1",
         "model_version": "models/m/versions/v@1"},
        {"name": "models/m/aliases/a", "expected_model_version": "models/m/versions/v@1",
         "model_version": "models/m/versions/v"},
    ),
    "Metadata.CreateChest": ({"chest_id": "once"}, {"chest_id": "twice"}),
    "Metadata.UpdateChest": (
        {"chest": {"name": "chests/c", "description": "1"}}, {"chest": {"name": "chests/c", "description": "2"}}
    ),
    "Store.OpenUpload": (
        {"entries": [{"digest": f"sha256:{'0' * 64}", "size_bytes": 1}]},
        {"entries": [{"digest": f"sha256:{'1' * 64}", "size_bytes": 1}]},
    ),
    "Builder.CreateBuild": (
        {"parent": "projects/p", "build_id": "once", "build": {"labels": {"a": "1"}}},
        {"parent": "projects/p", "build_id": "once", "build": {"labels": {"a": "2"}}},
    ),
    "Runner.CreateTraining": (
        {"parent": "projects/p", "training": {"build": "projects/p/builds/b", "notebook": "none"}},
        {"parent": "projects/p", "training": {"build": "projects/p/builds/b", "notebook": "none", "params_json": '{"a": 1}'}},
    ),
    "Runner.CreateDeployment": (
        {"parent": "projects/p", "deployment": {"spec": {"build": "projects/p/builds/b"}, "replicas": 0}},
        {"parent": "projects/p", "deployment": {"spec": {"build": "projects/p/builds/b"}, "replicas": 0, "port": 1}},
    ),
    "Runner.UpdateDeployment": (
        {"deployment": {"name": "projects/p/deployments/d", "labels": {"a": "1"}}},
        {"deployment": {"name": "projects/p/deployments/d", "labels": {"a": "2"}}},
    ),
    "Runner.RollbackDeployment": (
        {"name": "projects/p/deployments/d", "revision": 1}, {"name": "projects/p/deployments/d", "revision": 2}
    ),
    "Router.UpdateTraffic": (
        {"traffic": {"name": "projects/p/deployments/d/traffic", "sticky_key": "?one"}},
        {"traffic": {"name": "projects/p/deployments/d/traffic", "sticky_key": "?two"}},
    ),
    "Records.CreateRecord": (
        {"resource": {"training": {"name": "projects/p/trainings/once"}}, "request_fingerprint": b"1"},
        {"resource": {"training": {"name": "projects/p/trainings/once"}}, "request_fingerprint": b"2"},
    ),
    "Records.UpdateRecord": (
        {"resource": {"training": {"name": "projects/p/trainings/t", "warnings": ["1"]}}, "request_fingerprint": b"1"},
        {"resource": {"training": {"name": "projects/p/trainings/t", "warnings": ["2"]}}, "request_fingerprint": b"2"},
    ),
}  # fmt: skip
"""A request and another one, for each rpc that takes a request id."""


def test_every_rpc_that_takes_a_request_id_has_its_row() -> None:
    assert set(ONCE) == {rpc for rpc in METHODS if "request_id" in fields_of(rpc)} - LATER


def _source(mesh: Mesh, rpc: str, asked: Any) -> Any:
    """Gives a build something to build, which needs no package."""
    if rpc == "Builder.CreateBuild":
        upload, digest = mesh.upload(b"nothing to run\n")
        asked.build.source.origin = build_pb2.Source.LOCAL
        asked.build.source.upload = upload
        asked.files.add(path="notes.txt", digest=digest)
    return asked


@pytest.mark.parametrize("rpc", ONCE)
def test_a_request_id_stands_for_one_request(mesh: Mesh, rpc: str) -> None:
    fields, others = ONCE[rpc]
    asked = _source(mesh, rpc, request(rpc, request_id=new_request_id(), **fields))
    first = mesh.call(rpc, asked)
    assert mesh.call(rpc, asked) == first, "asked again"
    if rpc == "Store.OpenUpload":
        return _opened(mesh, asked, others)
    if "name" in first.DESCRIPTOR.fields_by_name:
        _change(mesh, first.name)
    before = _settled(mesh)
    if "name" in first.DESCRIPTOR.fields_by_name:
        again = mesh.call(rpc, asked)
        if rpc == "Router.UpdateTraffic":  # what it wrote comes again; when the proxy took that is on record no more
            for answer in (first, again):
                for field in ("accept_time", "update_time", "etag"):
                    answer.ClearField(field)
        assert again == first, "asked again after a change"
    other = _source(mesh, rpc, request(rpc, request_id=asked.request_id, **others))
    refused(AlreadyExists, "REQUEST_ID_REUSED", lambda: mesh.call(rpc, other), rpc)
    other.request_id = "x" * 37
    refused(InvalidArgument, "BAD_REQUEST_ID", lambda: mesh.call(rpc, other), rpc)
    assert _settled(mesh) == before, "what others did since stays"
    return None


def _opened(mesh: Mesh, asked: Any, others: dict[str, Any]) -> None:
    other = request("Store.OpenUpload", request_id=asked.request_id, **others)
    refused(AlreadyExists, "REQUEST_ID_REUSED", lambda: mesh.call("Store.OpenUpload", other), "OpenUpload")
    other.request_id = "x" * 37
    refused(InvalidArgument, "BAD_REQUEST_ID", lambda: mesh.call("Store.OpenUpload", other), "OpenUpload")


def _change(mesh: Mesh, name: str) -> None:
    """Changes what can be changed, so that the present is no longer what was answered."""
    kind, _, rest = name.partition("/")
    label = {"labels": {"changed": new_request_id()}}
    if name.endswith("/traffic"):
        mesh.ask("Router.UpdateTraffic", traffic={"name": name, "sticky_key": "?changed"})
    elif "/deployments/" in name:
        mesh.ask("Runner.UpdateDeployment", deployment={"name": name, **label})
    elif "/" not in rest and kind in ("projects", "models"):
        mesh.ask(f"Metadata.Update{kind[:-1].title()}", **{kind[:-1]: {"name": name, **label}})
    elif "/versions/" in name:
        mesh.ask("Metadata.PublishModelVersion", model_version={"name": name, **label})
    elif "/datasets/" in name:
        mesh.ask("Metadata.PublishDataset", dataset={"name": name, **label})


def _settled(mesh: Mesh) -> dict[str, Any]:
    """Returns every record, without what goes on by itself."""
    found: dict[str, Any] = mesh.everything()
    for kind in ("Builds", "Trainings"):
        found[kind] = [each.name for each in found[kind]]
    for each in found["Deployments"]:
        each.ClearField("status")
        each.ClearField("update_time")
        each.ClearField("etag")
    found["Traffic"] = mesh.ask("Metadata.GetTraffic", name="projects/p/deployments/d/traffic")
    return found
