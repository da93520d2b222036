"""Projects, models, chests: created, changed, listed, searched and deleted."""

from __future__ import annotations

import asyncio
import base64
import uuid
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from noronha.chassis.principals import Kind, Principal
from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    NotFound,
    PermissionDenied,
)
from noronha.v1 import deployment_pb2, metadata_pb2, model_pb2, replica_pb2, task_status_pb2, training_pb2

pb = metadata_pb2

BAD_IDS = (
    "a_b", "-a", "a-", "a--b", "a b", "x:y", "../../x", "..", ".", "", "a" * 65, "e\u0301", "\u00e9", "\u0430", "a\n",
    "\na", "a\0", "a/b", "a@1", "%2e%2e", "a..b", "a.-b", "\u202ea", "\U0001f600", "a ",
)  # fmt: skip
"""Ids that no resource may have; a tag of a build has its own grammar."""

_GOOD_TAGS = ("a_b", "a-", "a--b", "a..b", "a.-b", "a" * 65)
BAD_TAGS = (*(each for each in BAD_IDS if each not in _GOOD_TAGS), "a" * 129)


async def refused(kind: type[NoronhaError], reason: str, call: Any) -> NoronhaError:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.reason == reason, caught.value.message
    return caught.value


async def test_a_project_is_kept(mesh: Any) -> None:
    await mesh.model()
    made = await mesh.project(
        description="what it is", models=["models/m"], home_dir="/home/me/p", git_repository="https://host/repo.git",
        docker_repository="registry:5000/p", labels={"team": "blue"},
    )  # fmt: skip
    assert made.etag and made.create_time == made.update_time
    get = pb.GetProjectRequest(name="projects/p")
    assert await mesh.owner.metadata.GetProject(get) == made
    await refused(AlreadyExists, "ALREADY_EXISTS", mesh.project())
    assert await mesh.owner.metadata.GetProject(get) == made


async def test_what_is_wrong_is_told_at_once(mesh: Any) -> None:
    call = mesh.project(
        description="x" * 513, home_dir="relative", git_repository="https://me:secret@host/repo",
        docker_repository="registry/p:tag", labels={"": "x"}, models=["models/m", "models/m"],
    )  # fmt: skip
    error = await refused(InvalidArgument, "BAD_FIELD", call)
    assert {field for field, _ in error.violations} == {
        f"project.{each}" for each in
        ("description", "home_dir", "git_repository", "docker_repository", "labels", "models")
    }  # fmt: skip
    assert "secret" not in str(error.violations) + error.message
    for repository in ("ext::sh -c id", "--upload-pack=x", "https://host/x\ny"):
        await refused(InvalidArgument, "BAD_FIELD", mesh.project(git_repository=repository))
    await refused(NotFound, "NOT_FOUND", mesh.project(models=["models/none"]))
    await refused(InvalidArgument, "BAD_NAME", mesh.project(models=["projects/p"]))


@pytest.mark.parametrize("id", BAD_IDS)
async def test_bad_ids_are_refused_everywhere(mesh: Any, id: str) -> None:
    owner = mesh.owner.metadata
    await mesh.model()
    await mesh.project()
    created = [
        owner.CreateProject(pb.CreateProjectRequest(project_id=id)),
        owner.CreateModel(pb.CreateModelRequest(model_id=id)),
        owner.CreateAlias(pb.CreateAliasRequest(parent="models/m", alias_id=id)),
        owner.CreateChest(pb.CreateChestRequest(chest_id=id)),
    ]
    if id:  # an empty one is drawn
        created += [
            owner.CreateModelVersion(pb.CreateModelVersionRequest(parent="models/m", model_version_id=id)),
            owner.CreateDataset(pb.CreateDatasetRequest(parent="models/m", dataset_id=id)),
        ]
    for call in created:
        await refused(InvalidArgument, "BAD_NAME", call)
    read = {
        "Project": "projects/{}", "Model": "models/{}", "ModelVersion": "models/m/versions/{}",
        "Dataset": "models/m/datasets/{}", "Alias": "models/m/aliases/{}", "Training": "projects/p/trainings/{}",
        "Deployment": "projects/p/deployments/{}", "Notebook": "projects/p/notebooks/{}", "Chest": "chests/{}",
        "Island": "islands/{}", "Traffic": "projects/p/deployments/{}/traffic",
        "DeploymentRevision": "projects/p/deployments/{}/revisions/1",
    }  # fmt: skip
    for word, pattern in read.items():
        if id == "a@1" and word in ("ModelVersion", "Dataset"):
            continue
        request = getattr(pb, f"Get{word}Request")(name=pattern.format(id))
        await refused(InvalidArgument, "BAD_NAME", getattr(owner, f"Get{word}")(request))
    await refused(InvalidArgument, "BAD_NAME", owner.ListDatasets(pb.ListDatasetsRequest(parent=f"models/{id}")))
    training = training_pb2.Training(name=f"projects/p/trainings/{id}")
    await refused(InvalidArgument, "BAD_NAME", mesh.service.record("training", training))


@pytest.mark.parametrize("tag", BAD_TAGS)
async def test_bad_tags_are_refused(mesh: Any, tag: str) -> None:
    await mesh.project()
    await refused(InvalidArgument, "BAD_NAME", mesh.build(f"projects/p/builds/{tag}"))
    if tag != "a@1":
        get = pb.GetBuildRequest(name=f"projects/p/builds/{tag}")
        await refused(InvalidArgument, "BAD_NAME", mesh.owner.metadata.GetBuild(get))


async def test_definitions_have_defaults_and_limits(mesh: Any) -> None:
    made = await mesh.model(model_files=[{"name": "clf.pkl"}, {"name": "b", "required": False, "max_mb": 1}])
    assert [(each.name, each.required, each.max_mb) for each in made.model_files] == [
        ("clf.pkl", True, 2048), ("b", False, 1)
    ]  # fmt: skip
    for bad in (
        [{"name": ""}], [{"name": "x" * 65}], [{"name": "a/b"}], [{"name": ".."}], [{"name": "a\n"}], [{"name": "a\\b"}],
        [{"name": "a"}, {"name": "a"}], [{"name": "a", "max_mb": 0}], [{"name": "a", "max_mb": -1}],
        [{"name": "a", "description": "x" * 513}],
    ):  # fmt: skip
        await refused(InvalidArgument, "BAD_FILE_SPEC", mesh.model("n", data_files=bad))


async def test_changes_touch_what_they_name(mesh: Any) -> None:
    await mesh.model()
    made = await mesh.project(description="d", home_dir="/h", labels={"a": "1"}, models=["models/m"])
    owner = mesh.owner.metadata

    def update(paths: tuple[str, ...] = (), **fields: Any) -> Any:
        request = pb.UpdateProjectRequest(project={"name": "projects/p", **fields})
        request.update_mask.paths.extend(paths)
        return owner.UpdateProject(request)

    changed = await update(git_repository="https://host/x")
    assert (changed.description, changed.home_dir, list(changed.models)) == ("d", "/h", ["models/m"])
    assert changed.git_repository == "https://host/x" and changed.etag != made.etag
    assert changed.create_time == made.create_time
    cleared = await update(("description", "labels"))
    assert cleared.description == "" and not cleared.labels and cleared.home_dir == "/h"
    replaced = await update(("*",), description="only")
    assert (replaced.description, replaced.home_dir, list(replaced.models)) == ("only", "", [])
    for path in ("nonsense", "name", "etag", "create_time", "description.x", "labels.a", "*,description"):
        await refused(InvalidArgument, "BAD_MASK", update(tuple(path.split(",")), description="x"))
    await refused(Aborted, "STALE_ETAG", update(etag=made.etag, description="stale"))
    assert (await update(etag=replaced.etag, description="fresh")).description == "fresh"
    await refused(NotFound, "NOT_FOUND", update(models=["models/none"]))
    missing = pb.UpdateProjectRequest(project={"name": "projects/none"})
    await refused(NotFound, "NOT_FOUND", owner.UpdateProject(missing))
    done = await asyncio.gather(*(update(("labels",), labels={"n": str(each)}) for each in range(10)))
    assert len({each.etag for each in done}) == 10


async def test_readers_get_the_fields_they_want(mesh: Any) -> None:
    await mesh.project(description="d", home_dir="/h")
    owner = mesh.owner.metadata
    mask = FieldMask(paths=["name", "description"])
    found = await owner.GetProject(pb.GetProjectRequest(name="projects/p", read_mask=mask))
    assert [field.name for field, _ in found.ListFields()] == ["name", "description"]
    page = await owner.ListProjects(pb.ListProjectsRequest(read_mask=mask))
    assert [field.name for field, _ in page.projects[0].ListFields()] == ["name", "description"]
    for call in (
        owner.GetProject(pb.GetProjectRequest(name="projects/p", read_mask=FieldMask(paths=["x"]))),
        owner.ListModels(pb.ListModelsRequest(read_mask=FieldMask(paths=["x"]))),
    ):
        await refused(InvalidArgument, "BAD_MASK", call)


async def test_requests_are_answered_once(mesh: Any) -> None:
    owner = mesh.owner.metadata
    request = pb.CreateProjectRequest(project_id="p", project={"description": "d"}, request_id=str(uuid.uuid4()))
    done = await asyncio.gather(*(owner.CreateProject(request) for _ in range(6)))
    assert all(each == done[0] for each in done)
    await owner.DeleteProject(pb.DeleteProjectRequest(name="projects/p"))
    assert await owner.CreateProject(request) == done[0], "the first answer stands whatever came after"
    with pytest.raises(NotFound):
        await owner.GetProject(pb.GetProjectRequest(name="projects/p"))
    for other in (
        pb.CreateProjectRequest(project_id="q", request_id=request.request_id),
        pb.CreateProjectRequest(project_id="p", project={"description": "x"}, request_id=request.request_id),
    ):
        await refused(AlreadyExists, "REQUEST_ID_REUSED", owner.CreateProject(other))
    reused = pb.CreateModelRequest(model_id="m2", request_id=request.request_id)
    await refused(AlreadyExists, "REQUEST_ID_REUSED", owner.CreateModel(reused))
    update = pb.UpdateModelRequest(model={"name": "models/m", "description": "x"}, request_id=str(uuid.uuid4()))
    await mesh.model()
    assert await owner.UpdateModel(update) == await owner.UpdateModel(update)
    stranger = mesh.caller(Principal(Kind.USER, "stranger"))
    await stranger.metadata.CreateModel(reused)


async def test_projects_end_with_what_they_hold(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    await mesh.project("p-q")
    await mesh.build()
    await mesh.training()
    owner = mesh.owner.metadata
    await mesh.owner.publish("models/m/versions/v", {"a": b"1"}, training="projects/p/trainings/t")
    plain, forced = (pb.DeleteProjectRequest(name="projects/p", force=force) for force in (False, True))
    for request in (plain, forced):
        await refused(FailedPrecondition, "STILL_RUNNING", owner.DeleteProject(request))
    ended = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.FAILED)
    await mesh.service.change("training", training_pb2.Training(name="projects/p/trainings/t", status=ended))
    deployment = deployment_pb2.Deployment(name="projects/p/deployments/d")
    deployment.status.state = deployment_pb2.DeploymentStatus.READY
    await mesh.service.record("deployment", deployment)
    await refused(FailedPrecondition, "STILL_RUNNING", owner.DeleteProject(forced))
    deployment.status.state = deployment_pb2.DeploymentStatus.STOPPED
    await mesh.service.change("deployment", deployment)
    replica = replica_pb2.Replica(name="projects/p/deployments/d/replicas/r", state=replica_pb2.Replica.DRAINING)
    await mesh.service.record("replica", replica)
    await refused(FailedPrecondition, "STILL_RUNNING", owner.DeleteProject(forced))
    await mesh.service.remove(replica.name)
    error = await refused(FailedPrecondition, "HAS_CHILDREN", owner.DeleteProject(plain))
    assert "projects/p/trainings/t" in error.message
    stale = pb.DeleteProjectRequest(name="projects/p", force=True, etag="stale")
    await refused(Aborted, "STALE_ETAG", owner.DeleteProject(stale))
    await owner.DeleteProject(forced)
    for call in (
        owner.GetTraining(pb.GetTrainingRequest(name="projects/p/trainings/t")),
        owner.GetBuild(pb.GetBuildRequest(name="projects/p/builds/latest@1")),
        owner.GetDeployment(pb.GetDeploymentRequest(name="projects/p/deployments/d")),
        owner.DeleteProject(forced),
    ):
        await refused(NotFound, "NOT_FOUND", call)
    version = await owner.GetModelVersion(pb.GetModelVersionRequest(name="models/m/versions/v"))
    assert version.training == "" and version.HasField("training_snapshot")
    assert [each.name for each in (await owner.ListProjects(pb.ListProjectsRequest())).projects] == ["projects/p-q"]


async def every(call: Any, request: Any, field: str) -> list[str]:
    found: list[str] = []
    for _ in range(200):
        page = await call(request)
        found += [each.name for each in getattr(page, field)]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
    raise AssertionError("the list does not end")


async def test_lists_go_page_by_page(mesh: Any) -> None:
    owner = mesh.owner.metadata
    wanted = [f"models/{each}" for each in sorted(["a", "a-b", "a.b", "a0", "B", "b", *(f"m{n}" for n in range(20))])]
    for name in reversed(wanted):
        await mesh.model(name.split("/")[1], labels={"even": str(len(name) % 2 == 0)})
    assert await every(owner.ListModels, pb.ListModelsRequest(page_size=3), "models") == wanted
    backward = pb.ListModelsRequest(page_size=4, order_by="name desc")
    assert await every(owner.ListModels, backward, "models") == wanted[::-1]
    made = pb.ListModelsRequest(page_size=4, order_by="create_time")
    assert await every(owner.ListModels, made, "models") == wanted[::-1]
    newest = pb.ListModelsRequest(page_size=4, order_by="update_time desc")
    assert await every(owner.ListModels, newest, "models") == wanted
    filtered = pb.ListModelsRequest(page_size=2, filter='{"labels.even": "True"}')
    assert await every(owner.ListModels, filtered, "models") == [each for each in wanted if len(each) % 2 == 0]
    assert len((await owner.ListModels(pb.ListModelsRequest(page_size=2**31 - 1))).models) == len(wanted)
    assert len((await owner.ListModels(pb.ListModelsRequest())).models) == len(wanted)
    # What is made or deleted meanwhile moves nothing that is still to come.
    page = await owner.ListModels(pb.ListModelsRequest(page_size=3))
    await mesh.model("0-first")
    await owner.DeleteModel(pb.DeleteModelRequest(name=wanted[2]))
    rest = pb.ListModelsRequest(page_size=3, page_token=page.next_page_token)
    assert await every(owner.ListModels, rest, "models") == wanted[3:]


async def test_bad_lists_are_refused(mesh: Any) -> None:
    owner = mesh.owner.metadata
    for each in range(4):
        await mesh.model(f"m{each}")
    for page_size in (-1, -(2**31)):
        await refused(InvalidArgument, "BAD_PAGE_SIZE", owner.ListModels(pb.ListModelsRequest(page_size=page_size)))
    for order in ("labels", "name up", "name desc desc", "create_time,name"):
        await refused(InvalidArgument, "BAD_ORDER", owner.ListModels(pb.ListModelsRequest(order_by=order)))
    error = await refused(
        InvalidArgument, "BAD_FILTER", owner.ListModels(pb.ListModelsRequest(filter='{"$where": "1"}'))
    )
    assert "$where" in error.message
    token = (await owner.ListModels(pb.ListModelsRequest(page_size=2))).next_page_token
    sealed = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    forged = [
        "x", "é", "a b", token[:-1], token + "A", token[::-1], base64.urlsafe_b64encode(b'[0,"",0]').decode(),
        base64.urlsafe_b64encode(sealed[:16] + b'[0,"models/a",0]').decode().rstrip("="),
    ]  # fmt: skip
    forged += [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(0, len(token), 5)]
    for each in forged:
        await refused(InvalidArgument, "BAD_PAGE_TOKEN", owner.ListModels(pb.ListModelsRequest(page_token=each)))
    for other in (
        pb.ListModelsRequest(page_token=token, filter="{}"),
        pb.ListModelsRequest(page_token=token, order_by="create_time"),
    ):
        await refused(InvalidArgument, "BAD_PAGE_TOKEN", owner.ListModels(other))
    await refused(InvalidArgument, "BAD_PAGE_TOKEN", owner.ListProjects(pb.ListProjectsRequest(page_token=token)))
    stranger = mesh.caller(Principal(Kind.USER, "me", tenant="another"))
    request = pb.ListModelsRequest(page_token=token)
    await refused(InvalidArgument, "BAD_PAGE_TOKEN", stranger.metadata.ListModels(request))
    # The page size and the fields wanted may change from page to page.
    await owner.ListModels(pb.ListModelsRequest(page_token=token, page_size=1, read_mask=FieldMask(paths=["name"])))
    await refused(NotFound, "NOT_FOUND", owner.ListDatasets(pb.ListDatasetsRequest(parent="models/none")))


async def test_pages_stay_small(mesh: Any) -> None:
    await mesh.model()
    for each in range(4):
        await mesh.owner.publish(f"models/m/datasets/d{each}", details_json='{"x": "' + "x" * 900_000 + '"}')
    owner = mesh.owner.metadata
    page = await owner.ListDatasets(pb.ListDatasetsRequest(parent="models/m"))
    assert len(page.datasets) == 2
    listed = pb.ListDatasetsRequest(parent="models/m")
    assert len(await every(owner.ListDatasets, listed, "datasets")) == 4


async def test_lists_across_parents(mesh: Any) -> None:
    for model in ("a", "b"):
        await mesh.model(model)
        for dataset in ("x", "y"):
            await mesh.owner.publish(f"models/{model}/datasets/{dataset}", details_json='{"n": 1}')
    owner = mesh.owner.metadata
    found = await every(owner.ListDatasets, pb.ListDatasetsRequest(parent="models/-", page_size=3), "datasets")
    assert found == [f"models/{model}/datasets/{dataset}" for model in "ab" for dataset in "xy"]
    assert len((await owner.ListDatasets(pb.ListDatasetsRequest(parent="models/a"))).datasets) == 2
    for parent in ("", "models", "models/a/datasets/x", "projects/a", "-"):
        await refused(InvalidArgument, "BAD_NAME", owner.ListDatasets(pb.ListDatasetsRequest(parent=parent)))


async def test_filters_see_fields_and_details(mesh: Any) -> None:
    await mesh.model()
    await mesh.owner.publish("models/m/datasets/d", {"x": b"1"})
    for each in range(5):
        details = f'{{"metrics": {{"acc": 0.{each}}}, "n": {each}}}'
        await mesh.owner.publish(f"models/m/versions/v{each}", details_json=details, dataset="models/m/datasets/d")
    owner = mesh.owner.metadata
    for text, wanted in {
        '{"details.metrics.acc": {"$gt": 0.2}}': 2,
        '{"details.n": {"$in": [1, 2.0, "3"]}}': 2,
        '{"dataset": "models/m/datasets/d@1"}': 5,
        '{"dataset_snapshot.stored": true}': 5,
        '{"dataset_snapshot.files": {"$exists": true}, "files": {"$size": 0}}': 5,
        '{"stored": false}': 5,
        '{"create_time": {"$lt": "2000"}}': 0,
        '{"revision": 1, "name": {"$regex": "v[12]$"}}': 2,
        '{"training_snapshot": {"$exists": false}}': 5,
    }.items():
        page = await owner.ListModelVersions(pb.ListModelVersionsRequest(parent="models/m", filter=text))
        assert len(page.model_versions) == wanted, text


async def test_search(mesh: Any) -> None:
    await mesh.model("iris-clf", description="Classifies FLOWERS")
    await mesh.project("garden", description="about flowers")
    await mesh.owner.publish("models/iris-clf/versions/v1")
    owner = mesh.owner.metadata

    async def search(query: str, *kinds: str) -> list[str]:
        found, token = [], ""
        while True:
            page = await owner.SearchResources(
                pb.SearchResourcesRequest(query=query, kinds=kinds, page_size=1, page_token=token)
            )
            for each in page.resources:
                found.append(getattr(each, each.WhichOneof("kind")).name)
            token = page.next_page_token
            if not token:
                return found

    assert await search("Flowers") == ["models/iris-clf", "projects/garden"]
    assert await search("IRIS") == ["models/iris-clf", "models/iris-clf/versions/v1"]
    assert await search("iris", "model_version") == ["models/iris-clf/versions/v1"]
    assert await search("models") == []
    for bad, reason in (({"query": ""}, "BAD_QUERY"), ({"query": "x" * 257}, "BAD_QUERY"),
                        ({"query": "x", "kinds": ["thing"]}, "BAD_KIND")):  # fmt: skip
        await refused(InvalidArgument, reason, owner.SearchResources(pb.SearchResourcesRequest(**bad)))


async def test_chests_are_their_owners(mesh: Any) -> None:
    owner, other = mesh.owner.metadata, mesh.caller(Principal(Kind.USER, "other")).metadata
    secret = pb.CreateChestRequest(chest_id="c", chest={"credentials": {"user": "u", "password": "hunter2"}})
    error = await refused(FailedPrecondition, "NO_SECRETS_BACKEND", owner.CreateChest(secret))
    assert "hunter2" not in repr(error) + str(error.metadata)
    made = await owner.CreateChest(
        pb.CreateChestRequest(chest_id="c", chest={"description": "mine", "owner": "forged"})
    )
    assert made.owner not in ("", "forged") and not made.has_credentials and made.details_json == "{}"
    get, change = (
        pb.GetChestRequest(name="chests/c"),
        pb.UpdateChestRequest(chest={"name": "chests/c", "description": "x"}),
    )
    for call in (
        other.GetChest(get), other.UpdateChest(change), other.DeleteChest(pb.DeleteChestRequest(name="chests/c"))
    ):  # fmt: skip
        await refused(NotFound, "NOT_FOUND", call)
    assert not (await other.ListChests(pb.ListChestsRequest())).chests
    assert not (await other.SearchResources(pb.SearchResourcesRequest(query="c"))).resources
    assert len((await owner.SearchResources(pb.SearchResourcesRequest(query="mine"))).resources) == 1
    assert [each.name for each in (await owner.ListChests(pb.ListChestsRequest())).chests] == ["chests/c"]
    await refused(AlreadyExists, "ALREADY_EXISTS", other.CreateChest(pb.CreateChestRequest(chest_id="c")))
    assert (await owner.UpdateChest(change)).description == "x"
    secret_change = pb.UpdateChestRequest(chest={"name": "chests/c", "credentials": {"password": "hunter2"}})
    await refused(FailedPrecondition, "NO_SECRETS_BACKEND", owner.UpdateChest(secret_change))
    await owner.DeleteChest(pb.DeleteChestRequest(name="chests/c"))


async def test_tenants_do_not_meet(mesh: Any) -> None:
    await mesh.model(description="mine")
    other = mesh.caller(Principal(Kind.USER, "me", tenant="another")).metadata
    await refused(NotFound, "NOT_FOUND", other.GetModel(pb.GetModelRequest(name="models/m")))
    await other.CreateModel(pb.CreateModelRequest(model_id="m", model={"description": "theirs"}))
    assert [each.description for each in (await other.ListModels(pb.ListModelsRequest())).models] == ["theirs"]


async def test_lineage_goes_both_ways(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    await mesh.build()
    await mesh.owner.publish("models/m/datasets/d", {"x": b"1"})
    await mesh.owner.publish("models/m/versions/base", {"x": b"1"})
    await mesh.training(build="projects/p/builds/latest", datasets=["models/m/datasets/d"])
    await mesh.owner.publish(
        "models/m/versions/v", {"x": b"1"}, training="projects/p/trainings/t", pretrained="models/m/versions/base"
    )
    owner = mesh.owner.metadata

    async def edges(name: str, **more: Any) -> set[tuple[str, str, str]]:
        found = await owner.GetLineage(pb.GetLineageRequest(name=name, **more))
        assert not found.truncated or more.get("depth")
        return {(each.product, each.origin, each.relation) for each in found.edges}

    near = {
        ("models/m/versions/v@1", "projects/p/trainings/t", "training"),
        ("models/m/versions/v@1", "models/m/versions/base@1", "pretrained"),
    }
    far = {
        ("projects/p/trainings/t", "projects/p/builds/latest@1", "build"),
        ("projects/p/trainings/t", "models/m/datasets/d@1", "datasets"),
    }
    assert await edges("models/m/versions/v") == near | far
    assert await edges("models/m/versions/v", depth=1) == near
    assert await edges("models/m/datasets/d", direction="DESCENDANTS") == {
        ("projects/p/trainings/t", "models/m/datasets/d@1", "datasets"),
        ("models/m/versions/v@1", "projects/p/trainings/t", "training"),
    }
    await refused(NotFound, "NOT_FOUND", owner.GetLineage(pb.GetLineageRequest(name="models/none")))
    for depth in (-1, 101):
        await refused(
            InvalidArgument, "BAD_DEPTH", owner.GetLineage(pb.GetLineageRequest(name="models/m", depth=depth))
        )


async def test_services_alone_write_records(mesh: Any) -> None:
    await mesh.project()
    with pytest.raises(PermissionDenied):
        await mesh.owner.record("training", training_pb2.Training(name="projects/p/trainings/t"))
    await refused(InvalidArgument, "NOT_OWNED", mesh.service.record("model", model_pb2.Model(name="models/m")))


async def test_many_changes_of_one_record_all_happen(mesh: Any) -> None:
    await mesh.project()
    request = pb.UpdateProjectRequest(project={"name": "projects/p", "description": "d"})
    done = await asyncio.gather(*(mesh.owner.metadata.UpdateProject(request) for _ in range(120)))
    assert len({each.etag for each in done}) == 120
