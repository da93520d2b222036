"""Versions and datasets: what may be published, what a revision keeps, and what a deletion does."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

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
from noronha.v1 import alias_pb2, deployment_pb2, file_pb2, metadata_pb2, task_status_pb2, training_pb2

pb = metadata_pb2
V = "models/m/versions/v"
D = "models/m/datasets/d"


async def version(mesh: Any, name: str = V) -> Any:
    return await mesh.owner.metadata.GetModelVersion(pb.GetModelVersionRequest(name=name))


async def refused(kind: type[NoronhaError], reason: str, call: Any) -> NoronhaError:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.reason == reason, caught.value.message
    return caught.value


async def test_a_version_holds_what_was_published(mesh: Any) -> None:
    await mesh.model()
    details = '{"metrics": {"acc": 1.0, "n": 18446744073709551617}, "é": null}'
    made = await mesh.owner.publish(V, {"b.txt": b"two", "a/clf.pkl": b"one"}, details_json=details, labels={"x": "y"})
    assert (made.name, made.revision, made.stored, made.size_bytes) == (V, 1, True, 6)
    assert [file.path for file in made.files] == ["a/clf.pkl", "b.txt"]
    assert [file.size_bytes for file in made.files] == [3, 3]
    assert made.details_json == details
    assert made.storage_class == file_pb2.STORAGE_CLASS_STANDARD
    assert made == await version(mesh) == await version(mesh, f"{V}@1")
    await refused(AlreadyExists, "ALREADY_EXISTS", mesh.owner.publish(V, {"a": b"x"}))


async def test_publishing_carries_over_what_it_does_not_touch(mesh: Any) -> None:
    await mesh.model()
    await mesh.owner.publish(D, {"x": b"data"}, details_json='{"n": 1}')
    one = await mesh.owner.publish(V, {"a": b"one"}, details_json='{"n": 1}', dataset=D, labels={"k": "v"})
    two = await mesh.owner.publish(V, create=False, details_json='{"z": 1}')
    assert two.revision == 2 and two.details_json == '{"z": 1}'
    for field in ("files", "dataset", "dataset_snapshot", "labels", "stored", "storage_class", "size_bytes"):
        assert getattr(two, field) == getattr(one, field), field
    three = await mesh.owner.publish(V, {"b": b"other"}, create=False)
    assert [file.path for file in three.files] == ["b"] and three.details_json == '{"z": 1}'
    four = await mesh.owner.publish(V, create=False, without_files=True)
    assert not four.stored and not four.files and four.size_bytes == 0
    assert [(await version(mesh, f"{V}@{number}")) for number in (1, 2, 3)] == [one, two, three]
    listed = await mesh.owner.metadata.ListModelVersions(pb.ListModelVersionsRequest(parent="models/m"))
    assert [each.revision for each in listed.model_versions] == [4]
    listed = await mesh.owner.metadata.ListModelVersions(
        pb.ListModelVersionsRequest(parent="models/-", all_revisions=True)
    )
    assert [each.revision for each in listed.model_versions] == [4, 3, 2, 1]


async def test_publishing_follows_a_known_revision(mesh: Any) -> None:
    await mesh.model()
    await refused(NotFound, "NOT_FOUND", mesh.owner.publish(V, {"a": b"1"}, create=False))
    made = await mesh.owner.publish(V, {"a": b"1"}, create=False, allow_missing=True)
    assert made.revision == 1
    await mesh.owner.publish(V, create=False, expected_revision=1, details_json='{"n": 2}')
    stale = mesh.owner.publish(V, create=False, expected_revision=1, details_json='{"n": 3}')
    await refused(Aborted, "STALE_REVISION", stale)
    done = await asyncio.gather(
        *(mesh.owner.publish(V, create=False, expected_revision=2, labels={"n": str(each)}) for each in range(6)),
        return_exceptions=True,
    )
    assert sum(not isinstance(each, Exception) for each in done) == 1
    done = await asyncio.gather(*(mesh.owner.publish(V, create=False, labels={"n": "x"}) for _ in range(6)))
    assert sorted(each.revision for each in done) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("collection", ["versions", "datasets"])
async def test_the_definition_is_kept_to(mesh: Any, collection: str) -> None:
    specs = [{"name": "clf.pkl", "max_mb": 1}, {"name": "notes.txt", "required": False}]
    await mesh.model(**{"versions": {"model_files": specs}, "datasets": {"data_files": specs}}[collection])
    name = f"models/m/{collection}/x"
    error = await refused(FailedPrecondition, "MISSING_FILE", mesh.owner.publish(name, {"notes.txt": b"x"}))
    assert "clf.pkl" in error.message
    mib = 1 << 20
    await refused(FailedPrecondition, "FILE_TOO_LARGE", mesh.owner.publish(name, {"clf.pkl": b"x" * (mib + 1)}))
    await refused(InvalidArgument, "UNEXPECTED_FILE", mesh.owner.publish(name, {"clf.pkl": b"x", "sub/clf.pkl": b"y"}))
    with pytest.raises(NotFound):
        await (mesh.owner.metadata.GetDataset if collection == "datasets" else mesh.owner.metadata.GetModelVersion)(
            (pb.GetDatasetRequest if collection == "datasets" else pb.GetModelVersionRequest)(name=name)
        )
    made = await mesh.owner.publish(name, {"clf.pkl": b"x" * mib})
    assert made.files[0].size_bytes == mib
    empty = await mesh.owner.publish(name, {"clf.pkl": b""}, create=False)
    assert empty.files[0].size_bytes == 0


async def test_small_files_need_a_definition(mesh: Any) -> None:
    await mesh.model("loose")
    await mesh.model("large", model_files=[{"name": "a"}])
    await mesh.model("small", model_files=[{"name": "a", "max_mb": 10}])
    for model in ("loose", "large"):
        call = mesh.owner.publish(f"models/{model}/versions/v", {"a": b"x"}, storage_class="STORAGE_CLASS_LIGHTWEIGHT")
        with pytest.raises((FailedPrecondition, InvalidArgument)):
            await call
    upload, files = await mesh.owner.upload({"a": b"x"}, file_pb2.STORAGE_CLASS_LIGHTWEIGHT)
    made = await mesh.owner.publish("models/small/versions/v", upload=upload, files=files)
    assert made.storage_class == file_pb2.STORAGE_CLASS_LIGHTWEIGHT
    await refused(
        FailedPrecondition, "NOT_LIGHTWEIGHT",
        mesh.owner.publish("models/loose/versions/v", upload=upload, files=files),
    )  # fmt: skip


async def test_compressed_files_are_one_archive(mesh: Any) -> None:
    await mesh.model(model_files=[{"name": "clf.pkl"}])
    await refused(InvalidArgument, "BAD_ARCHIVE", mesh.owner.publish(V, {"clf.pkl": b"x"}, compressed=True))
    made = await mesh.owner.publish(V, {"v.tar.gz": b"x"}, compressed=True)
    assert made.compressed
    kept = await mesh.owner.publish(V, create=False, details_json='{"a": 1}')
    assert kept.compressed
    plain = await mesh.owner.publish(V, {"clf.pkl": b"x"}, create=False)
    assert not plain.compressed
    flipped = mesh.owner.publish(V, create=False, compressed=True)
    await refused(InvalidArgument, "UPLOAD_REQUIRED", flipped)


async def test_manifests_are_checked(mesh: Any) -> None:
    await mesh.model()
    upload, files = await mesh.owner.upload({"a": b"one"})
    digest = files[0].digest

    def file(path: str, digest: str = digest) -> Any:
        return file_pb2.File(path=path, digest=digest)

    def publish(*files: Any, upload: str = upload) -> Any:
        return mesh.owner.publish(V, upload=upload, files=list(files))

    for path in ("", "../a", "a/../b", "/a", "a//b", "./a", "a\\b", "a\n", "a\0", "x" * 1025):
        await refused(InvalidArgument, "BAD_PATH", publish(file(path)))
    await refused(InvalidArgument, "BAD_PATH", publish(file("a"), file("a")))
    await refused(InvalidArgument, "BAD_PATH", publish(file("a"), file("a/b")))
    await refused(InvalidArgument, "BAD_PATH", publish(file("e\u0301"), file("\u00e9")))
    await refused(InvalidArgument, "BAD_DIGEST", publish(file("a", "sha256:ABC")))
    await refused(FailedPrecondition, "BLOB_NOT_HELD", publish(file("a", f"sha256:{'0' * 64}")))
    await refused(InvalidArgument, "NO_FILES", publish())
    await refused(InvalidArgument, "UPLOAD_REQUIRED", publish(file("a"), upload=""))
    await refused(InvalidArgument, "TOO_MANY_FILES", publish(*(file(str(each)) for each in range(10_001))))
    await refused(NotFound, "NOT_FOUND", publish(file("a"), upload="nothing"))
    made = await publish(file("same/a"), file("same/b"))
    assert made.size_bytes == 6


async def test_an_upload_is_its_openers(mesh: Any) -> None:
    await mesh.model()
    upload, files = await mesh.owner.upload({"a": b"one"})
    other = mesh.caller(Principal(Kind.USER, "somebody-else"))
    with pytest.raises((PermissionDenied, NotFound)):
        await other.publish(V, upload=upload, files=files)


async def test_details_are_strict_json(mesh: Any) -> None:
    await mesh.model()
    for details in ("[1]", "nonsense", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a":' * 65 + "1" + "}" * 65, '{"a": 1e999}'):
        await refused(InvalidArgument, "BAD_JSON", mesh.owner.publish(V, details_json=details))
    await refused(InvalidArgument, "BAD_JSON", mesh.owner.publish(V, details_json=json.dumps({"a": "x" * (1 << 20)})))
    made = await mesh.owner.publish(V)
    assert made.details_json == "{}" and not made.stored


async def test_a_name_is_drawn_when_none_is_given(mesh: Any) -> None:
    await mesh.model()
    made = await asyncio.gather(
        *(mesh.owner.metadata.CreateDataset(pb.CreateDatasetRequest(parent="models/m")) for _ in range(5))
    )
    assert len({each.name for each in made}) == 5
    assert all(len(each.name.split("/")[-1].split("-")) == 3 for each in made)


async def test_snapshots_stay_as_they_were(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    await mesh.build()
    await mesh.owner.publish(D, {"x": b"data"}, details_json='{"n": 1}')
    base = await mesh.owner.publish("models/m/versions/base", {"x": b"w"}, details_json='{"n": 1}', dataset=D)
    await mesh.training(build="projects/p/builds/latest")
    made = await mesh.owner.publish(
        V, {"a": b"one"}, dataset=D, pretrained="models/m/versions/base", training="projects/p/trainings/t"
    )
    assert made.dataset == f"{D}@1" and made.pretrained == "models/m/versions/base@1"
    assert made.dataset_snapshot.details_json == '{"n": 1}' and not made.dataset_snapshot.files
    assert made.pretrained_snapshot.dataset == f"{D}@1" and not made.pretrained_snapshot.HasField("dataset_snapshot")
    assert base.HasField("dataset_snapshot")
    assert made.training_snapshot.build == "projects/p/builds/latest@1"
    assert not made.training_snapshot.HasField("build_snapshot")
    await mesh.owner.publish(D, create=False, details_json='{"n": 2}')
    carried = await mesh.owner.publish(V, create=False, details_json='{"later": 1}')
    assert carried.dataset == f"{D}@1" and carried.dataset_snapshot == made.dataset_snapshot
    renewed = await mesh.owner.publish(V, create=False, dataset=D)
    assert renewed.dataset == f"{D}@2" and renewed.dataset_snapshot.details_json == '{"n": 2}'
    for field, name in (
        ("dataset", "models/m/datasets/no"),
        ("training", "projects/p/trainings/no"),
        ("dataset", f"{D}@9"),
    ):
        await refused(NotFound, "NOT_FOUND", mesh.owner.publish("models/m/versions/new", **{field: name}))
    await refused(InvalidArgument, "BAD_NAME", mesh.owner.publish("models/m/versions/new", dataset="models/m"))


async def test_requests_are_answered_once(mesh: Any) -> None:
    await mesh.model()
    upload, files = await mesh.owner.upload({"a": b"one"})
    same = {"upload": upload, "files": files, "request_id": str(uuid.uuid4())}
    first = await mesh.owner.publish(V, **same)
    assert await mesh.owner.publish(V, **same) == first
    await mesh.owner.publish(V, create=False, details_json='{"later": 1}')
    assert await mesh.owner.publish(V, **same) == first
    await refused(AlreadyExists, "REQUEST_ID_REUSED", mesh.owner.publish("models/m/versions/other", **same))
    await refused(AlreadyExists, "ALREADY_EXISTS", mesh.owner.publish(V, **{**same, "request_id": str(uuid.uuid4())}))
    await refused(InvalidArgument, "BAD_REQUEST_ID", mesh.owner.publish(V, **{**same, "request_id": "x" * 37}))
    drawn = pb.CreateDatasetRequest(parent="models/m", request_id=str(uuid.uuid4()))
    done = await asyncio.gather(*(mesh.owner.metadata.CreateDataset(drawn) for _ in range(5)))
    assert len({each.name for each in done}) == 1


async def alias(mesh: Any, id: str = "champion", target: str = V) -> Any:
    return await mesh.owner.metadata.CreateAlias(
        pb.CreateAliasRequest(parent="models/m", alias_id=id, alias=alias_pb2.Alias(model_version=target))
    )


async def test_what_is_in_use_stays(mesh: Any) -> None:
    await mesh.model()
    await mesh.project(models=["models/m"])
    await mesh.build()
    await mesh.owner.publish(D, {"x": b"data"})
    await mesh.owner.publish(V, {"a": b"one"})
    delete_version = pb.DeleteModelVersionRequest(name=V)
    await alias(mesh)
    await refused(FailedPrecondition, "IN_USE", mesh.owner.metadata.DeleteModelVersion(delete_version))
    await mesh.owner.metadata.DeleteAlias(pb.DeleteAliasRequest(name="models/m/aliases/champion"))
    await mesh.training(build="projects/p/builds/latest", datasets=[D], pretrained=[V])
    error = await refused(FailedPrecondition, "IN_USE", mesh.owner.metadata.DeleteModelVersion(delete_version))
    assert "projects/p/trainings/t" in error.message
    await refused(
        FailedPrecondition, "IN_USE", mesh.owner.metadata.DeleteDataset(pb.DeleteDatasetRequest(name=f"{D}@1"))
    )
    ended = training_pb2.Training(name="projects/p/trainings/t", status=task_status_pb2.TaskStatus(state=3))
    await mesh.service.change("training", ended)
    await mesh.owner.metadata.DeleteDataset(pb.DeleteDatasetRequest(name=D))
    spec = deployment_pb2.DeploymentSpec(build="projects/p/builds/latest", model_versions=[V])
    deployed = await mesh.service.record(
        "deployment", deployment_pb2.Deployment(name="projects/p/deployments/d", spec=spec)
    )
    assert deployed.spec.model_versions == [f"{V}@1"] and deployed.spec.build == "projects/p/builds/latest@1"
    assert [each.name for each in deployed.spec.model_version_snapshots] == [V]
    name = "projects/p/deployments/d"
    for _ in range(2):
        revision = deployment_pb2.DeploymentRevision(name=f"{name}/revisions/-", spec=spec)
        await mesh.service.record("deployment_revision", revision)
    error = await refused(FailedPrecondition, "IN_USE", mesh.owner.metadata.DeleteModelVersion(delete_version))
    assert error.metadata["users"] == name, "each user once, as people know it"
    stopped = deployment_pb2.DeploymentStatus(state=deployment_pb2.DeploymentStatus.STOPPED)
    await mesh.service.change("deployment", deployment_pb2.Deployment(name=name, status=stopped), ["status"])
    holding = await refused(
        FailedPrecondition, "HAS_CHILDREN", mesh.owner.metadata.DeleteProject(pb.DeleteProjectRequest(name="projects/p"))
    )
    assert holding.metadata["children"] == f"projects/p/builds/latest, {name}, projects/p/trainings/t"
    moved_on = deployment_pb2.Deployment(name=name, spec={"build": "projects/p/builds/latest"})
    await mesh.service.change("deployment", moved_on, ["spec.model_versions", "spec.model_version_snapshots"])
    error = await refused(FailedPrecondition, "IN_USE", mesh.owner.metadata.DeleteModelVersion(delete_version))
    assert error.metadata["users"] == f"{name} (revision 1, 2)"
    assert (await version(mesh)).files
    delete_version.force = True
    await mesh.owner.metadata.DeleteModelVersion(delete_version)
    with pytest.raises(NotFound):
        await version(mesh)


async def test_a_forced_deletion_takes_its_aliases_along(mesh: Any) -> None:
    await mesh.model()
    await mesh.owner.publish(V, {"a": b"1"})
    await alias(mesh)
    await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name=V, force=True))
    with pytest.raises(NotFound):
        await mesh.owner.metadata.GetAlias(pb.GetAliasRequest(name="models/m/aliases/champion"))


async def test_revisions_are_deleted_one_by_one(mesh: Any) -> None:
    await mesh.model()
    for number in range(3):
        await mesh.owner.publish(V, {"a": b"%d" % number}, create=number == 0)
    one = await version(mesh, f"{V}@1")
    await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name=f"{V}@3", etag=""))
    assert (await version(mesh)).revision == 2
    assert (await mesh.owner.publish(V, {"a": b"x"}, create=False)).revision == 4, "a number is never used twice"
    stale = pb.DeleteModelVersionRequest(name=f"{V}@2", etag=one.etag)
    await refused(Aborted, "STALE_ETAG", mesh.owner.metadata.DeleteModelVersion(stale))
    await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name=f"{V}@1", etag=one.etag))
    await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name=V))
    for name in (V, f"{V}@2", f"{V}@4"):
        with pytest.raises(NotFound):
            await version(mesh, name)
    await refused(NotFound, "NOT_FOUND", mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name=V)))
    assert (await mesh.owner.publish(V, {"a": b"x"})).revision == 5


async def test_a_deleted_version_is_cleared_in_every_training(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    await mesh.owner.publish(V, {"a": b"1"})
    await mesh.owner.publish(V, {"a": b"2"}, create=False)
    for number in range(2):
        await mesh.training(f"projects/p/trainings/t{number}", published=[f"{V}@1", f"{V}@2"])
    await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name=f"{V}@1"))
    for number in range(2):
        training = await mesh.owner.metadata.GetTraining(pb.GetTrainingRequest(name=f"projects/p/trainings/t{number}"))
        assert training.published == [f"{V}@2"]
    await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name=V))
    training = await mesh.owner.metadata.GetTraining(pb.GetTrainingRequest(name="projects/p/trainings/t0"))
    assert not training.published


async def test_a_deleted_training_is_cleared_in_its_versions(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    await mesh.training()
    for number in range(2):
        await mesh.owner.publish(V, {"a": b"%d" % number}, create=number == 0, training="projects/p/trainings/t")
    before = await version(mesh, f"{V}@1")
    await mesh.service.remove("projects/p/trainings/t")
    for number in (1, 2):
        found = await version(mesh, f"{V}@{number}")
        assert found.training == "" and found.training_snapshot.name == "projects/p/trainings/t"
    assert (await version(mesh, f"{V}@1")).etag != before.etag
    assert (await version(mesh)).revision == 2


async def test_models_go_last(mesh: Any) -> None:
    await mesh.model()
    await mesh.project(models=["models/m"])
    await mesh.owner.publish(V, {"a": b"1"})
    await mesh.owner.publish(D, {"a": b"1"})
    await alias(mesh)
    forced = pb.DeleteModelRequest(name="models/m", force=True)
    await refused(FailedPrecondition, "IN_USE", mesh.owner.metadata.DeleteModel(forced))
    assert (await version(mesh)).revision == 1, "nothing is deleted when the whole is refused"
    update = pb.UpdateProjectRequest(project={"name": "projects/p"})
    update.update_mask.paths.append("models")
    await mesh.owner.metadata.UpdateProject(update)
    plain = pb.DeleteModelRequest(name="models/m")
    await refused(FailedPrecondition, "HAS_CHILDREN", mesh.owner.metadata.DeleteModel(plain))
    await mesh.training(pretrained=[V])
    await refused(FailedPrecondition, "IN_USE", mesh.owner.metadata.DeleteModel(forced))
    await mesh.service.remove("projects/p/trainings/t")
    await mesh.owner.metadata.DeleteModel(forced)
    assert not (await mesh.owner.metadata.SearchResources(pb.SearchResourcesRequest(query="m"))).resources


async def test_aliases_move_by_compare_and_swap(mesh: Any) -> None:
    await mesh.model()
    await mesh.model("other")
    await mesh.owner.publish("models/other/versions/v", {"a": b"1"})
    for number in range(3):
        await mesh.owner.publish(V, {"a": b"%d" % number}, create=number == 0)
    made = await alias(mesh, target=f"{V}@1")
    assert made.model_version == f"{V}@1" and len(made.history) == 1
    name = made.name

    def move(target: str, expected: str) -> Any:
        return mesh.owner.metadata.MoveAlias(
            pb.MoveAliasRequest(name=name, model_version=target, expected_model_version=expected)
        )

    moved = await move(V, f"{V}@1")
    assert moved.model_version == f"{V}@3"
    assert [each.model_version for each in moved.history] == [f"{V}@3", f"{V}@1"]
    assert all(each.mover for each in moved.history)
    error = await refused(Aborted, "STALE_ALIAS", move(f"{V}@2", f"{V}@1"))
    assert error.metadata["model_version"] == f"{V}@3"
    done = await asyncio.gather(*(move(f"{V}@{each}", f"{V}@3") for each in (1, 2)), return_exceptions=True)
    assert sum(isinstance(each, Aborted) for each in done) == 1
    await refused(InvalidArgument, "BAD_NAME", move(V, V))
    await refused(NotFound, "NOT_FOUND", alias(mesh, "x", f"{V}@9"))
    await refused(InvalidArgument, "OTHER_MODEL", alias(mesh, "x", "models/other/versions/v"))
    await refused(AlreadyExists, "ALREADY_EXISTS", alias(mesh))


async def test_tasks_reach_their_own_models_only(mesh: Any) -> None:
    await mesh.model()
    await mesh.model("other")
    await mesh.project()
    await mesh.training()
    await mesh.training("projects/p/trainings/another")
    task = mesh.caller(Principal(Kind.TASK, "projects/p/trainings/t", project="projects/p", models=("models/m",)))
    made = await task.publish(V, {"a": b"1"}, training="projects/p/trainings/t")
    assert made.training_snapshot.name == "projects/p/trainings/t"
    for call in (
        task.publish("models/other/versions/v", {"a": b"1"}),
        task.publish(V, create=False, training="projects/p/trainings/another"),
        task.metadata.GetModel(pb.GetModelRequest(name="models/other")),
        task.metadata.ListModelVersions(pb.ListModelVersionsRequest(parent="models/-")),
    ):
        await refused(PermissionDenied, "OUT_OF_SCOPE", call)
    await task.metadata.GetModel(pb.GetModelRequest(name="models/m"))
    await task.metadata.ListModelVersions(pb.ListModelVersionsRequest(parent="models/m"))


async def test_a_task_whose_training_has_ended_publishes_nothing_more(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    await mesh.training()
    task = mesh.caller(Principal(Kind.TASK, "projects/p/trainings/t", project="projects/p", models=("models/m",)))
    await task.publish(V, {"a": b"1"}, training="projects/p/trainings/t")
    ended = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.CANCELLED)
    await mesh.service.change("training", training_pb2.Training(name="projects/p/trainings/t", status=ended))
    late = task.publish(V, {"a": b"2"}, create=False, training="projects/p/trainings/t")
    await refused(FailedPrecondition, "TASK_ENDED", late)
    await mesh.owner.publish(V, {"a": b"2"}, create=False, training="projects/p/trainings/t")


async def test_a_record_that_is_too_large_is_refused(mesh: Any) -> None:
    await mesh.model()
    upload, files = await mesh.owner.upload({"a": b"one"})
    digest = files[0].digest
    files = [file_pb2.File(path=f"{'x' * 200}/{'y' * 200}/{number}", digest=digest) for number in range(7000)]
    await refused(InvalidArgument, "RECORD_TOO_LARGE", mesh.owner.publish(V, upload=upload, files=files))
