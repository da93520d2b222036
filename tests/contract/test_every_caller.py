"""Every rpc that a mesh serves, called over the wire by every kind of caller.

Who may call what is the table in ``noronha.chassis.principals``. Here a whole mesh is asked: whoever the table names is
let in, whatever the answer then is, and everybody else is refused for who they are.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from noronha.chassis import principals
from noronha.chassis.principals import TABLE, TENANT_HEADER, Kind, Principal, Tokens
from noronha.rpc.dial import dial, dial_async, new_request_id
from noronha.rpc.errors import Internal, NoronhaError
from noronha.v1 import (
    build_pb2,
    dataset_pb2,
    mesh_pb2,
    mesh_pb2_grpc,
    metadata_pb2,
    metadata_pb2_grpc,
    model_pb2,
    project_pb2,
    records_pb2,
    records_pb2_grpc,
    runner_pb2,
    store_pb2,
    tasks_pb2,
    training_pb2,
)

AT_ONCE = 16
"""Calls in flight at a time."""

REFUSALS = {"NO_TOKEN", "BAD_TOKEN", "TOKEN_EXPIRED", "NOT_ALLOWED"}
"""Reasons of being refused for who one is, whatever is asked for."""

SHUTDOWN = "/noronha.v1.Mesh/Shutdown"
"""Called by one who may as the very last thing, when the mesh of these tests ends."""

ENVOY = "envoy.service.discovery.v3.AggregatedDiscoveryService"
"""What Envoy calls. Reflection names it and describes nothing of it, since the mesh has no descriptors of Envoy's."""

TASK = Principal(Kind.TASK, "projects/mine/trainings/t", project="projects/mine", models=("models/mine",))
"""A task of one project that was given one model. No training of that name runs, so that its calls change nothing."""

PEOPLE = {
    Kind.USER: Principal(Kind.USER, "ana"),
    Kind.OWNER: Principal(Kind.OWNER, "olga"),
    Kind.SERVICE: Principal(Kind.SERVICE, "runner"),
    Kind.TASK: TASK,
}

OWNER = PEOPLE[Kind.OWNER]


class Mesh(NamedTuple):
    """A mesh of five services on one TCP port, where nobody is trusted for the way they came; it starts no proxy."""

    address: str
    tokens: Tokens

    def bearer(self, principal: Principal, lifetime: float | None = None) -> str:
        return f"Bearer {self.tokens.mint(principal, lifetime=lifetime)}"

    def dial(self, principal: Principal) -> grpc.Channel:
        return dial(self.address, token=self.tokens.mint(principal))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    folder = Path(tempfile.mkdtemp(prefix="nha-"))
    address = folder / "address"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "noronha.chassis", "--listen", "127.0.0.1:0", "--state-dir", str(folder / "mesh"),
         "--address-file", str(address)],
        env={**clean, "HOME": str(folder), "NHA_ROUTER__NATIVE": "false", "NHA_ROUTER__HOST": "127.0.0.1"},
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not address.exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        made = Mesh(address.read_text().strip(), Tokens(principals.load_key(folder / "mesh")))
        yield made
        # The one call that no test may make before: its row is proven by the server's end.
        with made.dial(OWNER) as channel:
            mesh_pb2_grpc.MeshStub(channel).Shutdown(mesh_pb2.ShutdownRequest(stop_tasks=True))
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def populated(mesh: Mesh) -> Mesh:
    """The mesh with two projects and two models; the tasks of these tests belong to those called mine."""
    with mesh.dial(PEOPLE[Kind.USER]) as channel:
        metadata = metadata_pb2_grpc.MetadataStub(channel)
        for name in ("mine", "other"):
            metadata.CreateModel(metadata_pb2.CreateModelRequest(model_id=name, model=model_pb2.Model()))
            project = project_pb2.Project(models=[f"models/{name}"])
            metadata.CreateProject(metadata_pb2.CreateProjectRequest(project_id=name, project=project))
            dataset = metadata_pb2.CreateDatasetRequest(
                parent=f"models/{name}", dataset_id="d", dataset=dataset_pb2.Dataset()
            )
            metadata.CreateDataset(dataset)
    with mesh.dial(PEOPLE[Kind.SERVICE]) as channel:
        records = records_pb2_grpc.RecordsStub(channel)
        build = build_pb2.Build(name="projects/mine/builds/b")
        records.CreateRecord(records_pb2.CreateRecordRequest(resource={"build": build}))
        training = training_pb2.Training(name="projects/mine/trainings/u", build="projects/mine/builds/b", notebook="n")
        records.CreateRecord(records_pb2.CreateRecordRequest(resource={"training": training}))
    return mesh


async def _call(channel: Any, rpc: str, request: bytes) -> NoronhaError | None:
    """Returns the error of a call, None when it is answered or ends; on the wire every shape of rpc begins alike."""
    call = channel.unary_stream(rpc, request_serializer=None, response_deserializer=None)
    try:
        async for _ in call(request, timeout=60):
            return None
    except NoronhaError as error:
        return error
    return None


def _ask(mesh: Mesh, calls: list[tuple[str, bytes]], *headers: tuple[str, str]) -> list[NoronhaError | None]:
    """Makes calls under the same headers, several at a time, and returns what came of each."""

    async def all_of_them() -> list[NoronhaError | None]:
        limit = asyncio.Semaphore(AT_ONCE)
        async with dial_async(mesh.address, headers=lambda: list(headers)) as channel:

            async def one(rpc: str, request: bytes) -> NoronhaError | None:
                async with limit:
                    return await _call(channel, rpc, request)

            return await asyncio.gather(*(one(rpc, request) for rpc, request in calls))

    return asyncio.run(all_of_them())


def _reasons(mesh: Mesh, rpcs: list[str], *headers: tuple[str, str]) -> dict[str, str]:
    """Returns for what reason each rpc refuses who calls with nothing in the request; '' where it lets them in."""
    answers = _ask(mesh, [(rpc, b"") for rpc in rpcs], *headers)
    broken = {rpc: str(error) for rpc, error in zip(rpcs, answers, strict=True) if isinstance(error, Internal)}
    assert broken == {}, "an empty request is refused in words, not with INTERNAL"
    reasons = {rpc: error.reason if error else "" for rpc, error in zip(rpcs, answers, strict=True)}
    return {rpc: reason if reason in REFUSALS else "" for rpc, reason in reasons.items()}


def _served(mesh: Mesh) -> set[str]:
    """Returns every rpc that the server says it has."""
    with mesh.dial(OWNER) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = set(database.get_services())
        assert ENVOY in names
        found = {row for row in TABLE if row.startswith(f"/{ENVOY}/")}
        for name in names - {ENVOY}:
            file = database.FindFileContainingSymbol(name)
            [service] = [each for each in file.service if f"{file.package}.{each.name}" == name]
            found |= {f"/{name}/{method.name}" for method in service.method}
        return found


def test_what_is_served_and_what_has_a_row_are_the_same(mesh: Mesh) -> None:
    assert _served(mesh) == set(TABLE)


@pytest.mark.parametrize("kind", PEOPLE, ids=lambda kind: kind.value)
def test_who_is_known_reaches_their_rows_and_no_other(mesh: Mesh, kind: Kind) -> None:
    rpcs = sorted(set(TABLE) - ({SHUTDOWN} if kind in TABLE[SHUTDOWN] else set()))
    expected = {rpc: "" if kind in TABLE[rpc] else "NOT_ALLOWED" for rpc in rpcs}
    assert _reasons(mesh, rpcs, ("authorization", mesh.bearer(PEOPLE[kind]))) == expected


def _payload(principal: Principal) -> str:
    return Tokens(b"x" * 32).mint(principal).split(".")[1]


def _altered(mesh: Mesh) -> str:
    """Returns a user's token whose content was exchanged for the owner's."""
    prefix, _, mac = mesh.tokens.mint(PEOPLE[Kind.USER]).split(".")
    return f"Bearer {prefix}.{_payload(OWNER)}.{mac}"


def _encoded(**content: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


WRONG: dict[str, tuple[str, Callable[[Mesh], str]]] = {
    "another-mesh's": ("BAD_TOKEN", lambda mesh: f"Bearer {Tokens(b'k' * 32).mint(OWNER)}"),
    "expired": ("TOKEN_EXPIRED", lambda mesh: mesh.bearer(OWNER, lifetime=-1)),
    "altered": ("BAD_TOKEN", _altered),
    "unsigned": ("BAD_TOKEN", lambda mesh: f"Bearer nha1.{_payload(OWNER)}."),
    "without-its-mac": ("BAD_TOKEN", lambda mesh: f"Bearer nha1.{_payload(OWNER)}"),
    "of-no-algorithm": ("BAD_TOKEN", lambda mesh: f"Bearer none.{_payload(OWNER)}.none"),
    "a-jwt-of-none": ("BAD_TOKEN", lambda mesh: f"Bearer {_encoded(alg='none')}.{_encoded(kind='owner')}."),
    "cut-short": ("BAD_TOKEN", lambda mesh: mesh.bearer(OWNER)[:-1]),
    "made-longer": ("BAD_TOKEN", lambda mesh: mesh.bearer(OWNER) + "A"),
    "garbage": ("BAD_TOKEN", lambda mesh: "Bearer " + "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~" * 4),
    "empty": ("BAD_TOKEN", lambda mesh: "Bearer "),
    "as-long-as-headers-get": ("BAD_TOKEN", lambda mesh: "Bearer " + "A" * 7000),
    "of-another-scheme": ("BAD_TOKEN", lambda mesh: mesh.bearer(OWNER).replace("Bearer", "Basic")),
    "without-a-scheme": ("BAD_TOKEN", lambda mesh: mesh.bearer(OWNER).removeprefix("Bearer ")),
}
"""Authorization headers that are worth nothing, with the reason they are refused for."""


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_token_opens_nothing_not_even_what_is_open_to_nobody(mesh: Mesh, wrong: str) -> None:
    reason, header = WRONG[wrong]
    assert _reasons(mesh, sorted(TABLE), ("authorization", header(mesh))) == dict.fromkeys(TABLE, reason)


def test_nobody_reaches_health_alone(mesh: Mesh) -> None:
    expected = {rpc: "" if Kind.ANONYMOUS in kinds else "NO_TOKEN" for rpc, kinds in TABLE.items()}
    assert _reasons(mesh, sorted(TABLE)) == expected
    assert {rpc for rpc, reason in expected.items() if not reason} == {
        f"/grpc.health.v1.Health/{method}" for method in ("Check", "Watch", "List")
    }


def test_of_two_tokens_none_is_believed(mesh: Mesh) -> None:
    user, owner = (("authorization", mesh.bearer(PEOPLE[kind])) for kind in (Kind.USER, Kind.OWNER))
    for headers in ((user, owner), (owner, user), (owner, owner)):
        assert _reasons(mesh, [SHUTDOWN], *headers) == {SHUTDOWN: "BAD_TOKEN"}


def test_headers_too_large_for_the_server_are_refused_and_it_goes_on(mesh: Mesh) -> None:
    huge = ("authorization", "Bearer " + "A" * (1 << 20))
    [error] = _ask(mesh, [("/noronha.v1.Mesh/GetInfo", b"")], huge)
    assert error is not None and error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert _ask(mesh, [("/noronha.v1.Mesh/GetInfo", b"")], ("authorization", mesh.bearer(OWNER))) == [None]


PATHS = [
    "noronha.v1.Mesh/Shutdown",
    "//noronha.v1.Mesh/Shutdown",
    "/noronha.v1.Mesh/Shutdown/",
    "/noronha.v1.Mesh//Shutdown",
    "/noronha.v1.Mesh/shutdown",
    "/NORONHA.V1.MESH/SHUTDOWN",
    "/noronha.v1.Mesh/Shutdown?",
    "/noronha.v1.Mesh/Shutdown#",
    "/noronha.v1.Mesh/./Shutdown",
    "/noronha.v1.Mesh/%53hutdown",
    "/noronha.v1.Mesh/Shutdown%20",
    "/noronha.v1.Metadata/Shutdown",
    "/noronha.v1.Mesh/Nonsense",
    "/Mesh/Shutdown",
    "/",
]
"""Ways to write a path that are not the one in the table; led on, each would end the mesh."""


@pytest.mark.parametrize("kind", PEOPLE, ids=lambda kind: kind.value)
def test_a_path_that_is_not_in_the_table_leads_nowhere(mesh: Mesh, kind: Kind) -> None:
    authorization = ("authorization", mesh.bearer(PEOPLE[kind]))
    codes = {
        path: error.code if error else 0
        for path, error in zip(PATHS, _ask(mesh, [(path, b"") for path in PATHS], authorization), strict=True)
    }
    assert codes == dict.fromkeys(PATHS, grpc.StatusCode.UNIMPLEMENTED.value[0])
    assert _ask(mesh, [("/noronha.v1.Mesh/GetInfo", b"")], authorization) == [None]


def test_the_header_for_another_tenant_is_read_from_services_alone(populated: Mesh) -> None:
    project = metadata_pb2.GetProjectRequest(name="projects/mine").SerializeToString()
    call = [("/noronha.v1.Metadata/GetProject", project)]
    for kind in (Kind.USER, Kind.OWNER, Kind.TASK):
        authorization = ("authorization", populated.bearer(PEOPLE[kind]))
        assert _ask(populated, call, authorization, (TENANT_HEADER, "elsewhere")) == [None], kind
    authorization = ("authorization", populated.bearer(PEOPLE[Kind.SERVICE]))
    [error] = _ask(populated, call, authorization, (TENANT_HEADER, "elsewhere"))
    assert error is not None and error.reason == "NOT_FOUND"


def test_a_token_of_another_tenant_finds_nothing_of_this_one(populated: Mesh) -> None:
    stranger = Principal(Kind.USER, "ana", tenant="elsewhere")
    calls = [
        ("/noronha.v1.Metadata/GetProject", metadata_pb2.GetProjectRequest(name="projects/mine")),
        ("/noronha.v1.Metadata/GetModel", metadata_pb2.GetModelRequest(name="models/mine")),
        ("/noronha.v1.Metadata/DeleteModel", metadata_pb2.DeleteModelRequest(name="models/mine", force=True)),
        ("/noronha.v1.Runner/CreateTraining", runner_pb2.CreateTrainingRequest(parent="projects/mine")),
    ]
    wired = [(rpc, request.SerializeToString()) for rpc, request in calls]
    errors = _ask(populated, wired, ("authorization", populated.bearer(stranger)))
    assert [error.reason if error else "" for error in errors[:3]] == ["NOT_FOUND"] * 3
    assert errors[3] is not None


def _reaches(name: str) -> dict[str, Message]:
    """Returns a request to each rpc in which a task can name what is not its own; ``name`` is a project and a model."""
    project, model = f"projects/{name}", f"models/{name}"
    create = metadata_pb2.CreateModelVersionRequest(
        parent=model, model_version_id=new_request_id(), model_version={}, request_id=new_request_id()
    )
    publish = metadata_pb2.PublishModelVersionRequest(
        model_version={"name": f"{model}/versions/v"}, allow_missing=True, request_id=new_request_id()
    )
    return {
        "GetProject": metadata_pb2.GetProjectRequest(name=project),
        "GetTraining": metadata_pb2.GetTrainingRequest(name=f"{project}/trainings/t"),
        "GetBuild": metadata_pb2.GetBuildRequest(name=f"{project}/builds/b"),
        "GetDeployment": metadata_pb2.GetDeploymentRequest(name=f"{project}/deployments/d"),
        "GetModel": metadata_pb2.GetModelRequest(name=model),
        "GetModelVersion": metadata_pb2.GetModelVersionRequest(name=f"{model}/versions/v"),
        "ListModelVersions": metadata_pb2.ListModelVersionsRequest(parent=model),
        "CreateModelVersion": create,
        "PublishModelVersion": publish,
        "GetDataset": metadata_pb2.GetDatasetRequest(name=f"{model}/datasets/d"),
        "ListDatasets": metadata_pb2.ListDatasetsRequest(parent=model),
        "GetAlias": metadata_pb2.GetAliasRequest(name=f"{model}/aliases/a"),
        "ListAliases": metadata_pb2.ListAliasesRequest(parent=model),
    }


def _reasons_of_reaching(mesh: Mesh, requests: dict[str, Message]) -> dict[str, str]:
    calls = [(f"/noronha.v1.Metadata/{rpc}", request.SerializeToString()) for rpc, request in requests.items()]
    answers = _ask(mesh, calls, ("authorization", mesh.bearer(TASK)))
    return {rpc: error.reason if error else "" for rpc, error in zip(requests, answers, strict=True)}


def test_a_task_reaches_its_own_project_and_models_and_no_others(populated: Mesh) -> None:
    open_to_tasks = {
        row.rpartition("/")[2] for row, kinds in TABLE.items() if Kind.TASK in kinds and "v1.Metadata/" in row
    }
    assert _reaches("mine").keys() == open_to_tasks, "what tasks may call is tried here, call by call"
    assert set(_reasons_of_reaching(populated, _reaches("mine")).values()) <= {"", "NOT_FOUND"}
    others = _reasons_of_reaching(populated, _reaches("other"))
    assert others == dict.fromkeys(open_to_tasks, "OUT_OF_SCOPE")
    wildcards = {
        "ListModelVersions": metadata_pb2.ListModelVersionsRequest(parent="models/-"),
        "ListDatasets": metadata_pb2.ListDatasetsRequest(parent="models/-"),
        "ListAliases": metadata_pb2.ListAliasesRequest(parent="models/-"),
    }
    assert _reasons_of_reaching(populated, wildcards) == dict.fromkeys(wildcards, "OUT_OF_SCOPE")


def test_a_task_publishes_in_its_own_name_and_of_its_own_assets_alone(populated: Mesh) -> None:
    for reference in ({"training": "projects/mine/trainings/u"}, {"dataset": "models/other/datasets/d"}):
        request = metadata_pb2.CreateModelVersionRequest(
            parent="models/mine", model_version_id="v", model_version=reference
        )
        reached = _reasons_of_reaching(populated, {"CreateModelVersion": request})
        assert reached == {"CreateModelVersion": "OUT_OF_SCOPE"}, reference


def test_a_task_sees_no_upload_of_others(populated: Mesh) -> None:
    entry = store_pb2.Blob(digest="sha256:" + "a" * 64, size_bytes=1)
    with populated.dial(PEOPLE[Kind.USER]) as channel:
        open_upload = channel.unary_unary(
            "/noronha.v1.Store/OpenUpload", store_pb2.OpenUploadRequest.SerializeToString, store_pb2.Upload.FromString
        )
        upload = open_upload(store_pb2.OpenUploadRequest(entries=[entry], request_id=new_request_id())).upload
    calls = [
        ("/noronha.v1.Store/GetUpload", store_pb2.GetUploadRequest(upload=upload)),
        ("/noronha.v1.Store/WriteBlobs", store_pb2.WriteBlobsRequest(upload=upload, digest=entry.digest, data=b"a")),
        ("/noronha.v1.Store/AbortUpload", store_pb2.AbortUploadRequest(upload=upload)),
    ]
    wired = [(rpc, request.SerializeToString()) for rpc, request in calls]
    errors = _ask(populated, wired, ("authorization", populated.bearer(TASK)))
    assert [error.reason if error else "" for error in errors[:2]] == ["NOT_FOUND", "NOT_FOUND"]
    authorization = ("authorization", populated.bearer(PEOPLE[Kind.USER]))
    assert _ask(populated, wired[:1], authorization) == [None], "the task did not end it"


def test_a_task_is_told_of_its_own_work_alone(mesh: Mesh) -> None:
    """No request to Tasks can name a task: the token says which one calls, and of the one here there is no record."""
    methods = tasks_pb2.DESCRIPTOR.services_by_name["Tasks"].methods
    assert [method.name for method in methods if {"name", "task", "parent"} & set(method.input_type.fields_by_name)] == []
    calls = [(f"/noronha.v1.Tasks/{method.name}", b"") for method in methods]
    errors = _ask(mesh, calls, ("authorization", mesh.bearer(TASK)))
    assert {error.reason if error else "" for error in errors} == {"TASK_ENDED"}
