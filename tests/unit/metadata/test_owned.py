"""What services write: builds and their revisions, deployments, leases, several writes at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from noronha.chassis.principals import Kind, Principal
from noronha.rpc.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NoronhaError, NotFound
from noronha.v1 import (
    build_pb2,
    deployment_pb2,
    metadata_pb2,
    records_pb2,
    replica_pb2,
    resource_pb2,
    task_status_pb2,
    traffic_pb2,
    training_pb2,
)

pb = metadata_pb2
B = "projects/p/builds/latest"
T = "projects/p/trainings/t"
PENDING, RUNNING, SUCCEEDED, FAILED = 1, 2, 3, 4


def status(state: int) -> Any:
    return task_status_pb2.TaskStatus(state=state)  # type: ignore[arg-type]


async def refused(kind: type[NoronhaError], reason: str, call: Any) -> NoronhaError:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.reason == reason, caught.value.message
    return caught.value


async def bare(mesh: Any, name: str = B) -> int:
    return int((await mesh.owner.metadata.GetBuild(pb.GetBuildRequest(name=name))).revision)


async def test_a_tag_means_the_newest_build_that_succeeded(mesh: Any) -> None:
    await mesh.project()

    async def ended(revision: int, state: int) -> None:
        await mesh.service.change("build", build_pb2.Build(name=B, revision=revision, status=status(state)))

    assert (await mesh.build(B, PENDING)).revision == 1
    assert await bare(mesh) == 1
    await mesh.build(B, PENDING)
    assert await bare(mesh) == 2, "none succeeded: the newest"
    await ended(1, SUCCEEDED)
    assert await bare(mesh) == 1
    await mesh.build(B, PENDING)
    assert await bare(mesh) == 1
    await ended(3, SUCCEEDED)
    assert await bare(mesh) == 3
    await ended(2, SUCCEEDED)
    assert await bare(mesh) == 3, "an older one that ends later takes nothing from a newer"
    await mesh.build(B, FAILED)
    assert await bare(mesh) == 3
    listed = await mesh.owner.metadata.ListBuilds(pb.ListBuildsRequest(parent="projects/p"))
    assert [each.revision for each in listed.builds] == [3]
    listed = await mesh.owner.metadata.ListBuilds(pb.ListBuildsRequest(parent="projects/-", all_revisions=True))
    assert [each.revision for each in listed.builds] == [4, 3, 2, 1]
    await mesh.service.remove(f"{B}@3")
    assert await bare(mesh) == 2
    await mesh.service.remove(f"{B}@2")
    await mesh.service.remove(f"{B}@1")
    assert await bare(mesh) == 4
    assert (await mesh.build(B, PENDING)).revision == 5
    await mesh.service.remove(B)
    with pytest.raises(NotFound):
        await bare(mesh)


async def test_builds_of_a_tag_race_for_numbers(mesh: Any) -> None:
    await mesh.project()
    made = await asyncio.gather(*(mesh.build(B, SUCCEEDED) for _ in range(8)))
    assert sorted(each.revision for each in made) == list(range(1, 9))
    assert await bare(mesh) == 8


async def test_a_build_in_use_stays(mesh: Any) -> None:
    await mesh.project()
    await mesh.build()
    await mesh.build()
    made = await mesh.training(build=f"{B}@1")
    assert made.build == f"{B}@1" and made.build_snapshot.revision == 1
    for name in (B, f"{B}@1"):
        await refused(FailedPrecondition, "IN_USE", mesh.service.remove(name))
    await mesh.service.remove(f"{B}@2")
    await mesh.service.change("training", training_pb2.Training(name=T, status=status(FAILED)))
    await mesh.service.remove(B)


async def test_references_are_completed_and_checked(mesh: Any) -> None:
    await mesh.project()
    await mesh.model()
    await mesh.build()
    await mesh.owner.publish("models/m/datasets/d")
    await mesh.owner.publish("models/m/versions/v")
    made = await mesh.training(
        build=B, datasets=["models/m/datasets/d"], pretrained=["models/m/versions/v"], params_json='{"a": 1}'
    )
    assert made.build == f"{B}@1" and made.build_snapshot.name == B
    assert made.datasets == ["models/m/datasets/d@1"] and made.pretrained == ["models/m/versions/v@1"]
    assert made.params_json == '{"a": 1}' and made.details_json == "{}"
    for kind, reason, fields in (
        (NotFound, "NOT_FOUND", {"build": "projects/p/builds/none"}),
        (NotFound, "NOT_FOUND", {"datasets": ["models/m/datasets/d@2"]}),
        (InvalidArgument, "BAD_NAME", {"datasets": ["models/m/versions/v"]}),
        (InvalidArgument, "BAD_JSON", {"params_json": "[]"}),
    ):
        await refused(kind, reason, mesh.training("projects/p/trainings/x", **fields))  # type: ignore[arg-type]
    await refused(NotFound, "NOT_FOUND", mesh.training("projects/none/trainings/x"))
    await refused(AlreadyExists, "ALREADY_EXISTS", mesh.training())


async def test_deployments_number_their_revisions(mesh: Any) -> None:
    await mesh.project()
    await mesh.build()
    name = "projects/p/deployments/d"
    spec = deployment_pb2.DeploymentSpec(build=B, notebook="predict")

    def revision(number: int | str) -> Any:
        return deployment_pb2.DeploymentRevision(name=f"{name}/revisions/{number}", spec=spec)

    def creating(**kinds: Any) -> Any:
        return records_pb2.CommitRecordsRequest.Write(
            create=records_pb2.CreateRecordRequest(resource=resource_pb2.Resource(**kinds))
        )

    made = await mesh.service.records.CommitRecords(
        records_pb2.CommitRecordsRequest(
            writes=[
                creating(deployment=deployment_pb2.Deployment(name=name, spec=spec, revision=1)),
                creating(deployment_revision=revision(1)),
                creating(replica=replica_pb2.Replica(name=f"{name}/replicas/r", revision=1)),
                creating(traffic=traffic_pb2.Traffic(name=f"{name}/traffic")),
            ]
        )
    )
    assert [each.resource.WhichOneof("kind") for each in made.records] == [
        "deployment", "deployment_revision", "replica", "traffic"
    ]  # fmt: skip
    for number in range(2, 12):
        made = await mesh.service.record("deployment_revision", revision("-" if number % 2 else number))
        assert made.name == f"{name}/revisions/{number}" and made.spec.build == f"{B}@1"
    listed = await mesh.owner.metadata.ListDeploymentRevisions(
        pb.ListDeploymentRevisionsRequest(parent=name, page_size=4)
    )
    assert [each.name.split("/")[-1] for each in listed.deployment_revisions] == ["11", "10", "9", "8"]
    one = await mesh.owner.metadata.GetDeploymentRevision(pb.GetDeploymentRevisionRequest(name=f"{name}/revisions/3"))
    assert one.name == f"{name}/revisions/3"
    await refused(FailedPrecondition, "IMMUTABLE", mesh.service.change("deployment_revision", one))
    replicas = await mesh.owner.metadata.ListReplicas(pb.ListReplicasRequest(parent="projects/-/deployments/d"))
    assert [each.name for each in replicas.replicas] == [f"{name}/replicas/r"]
    assert (await mesh.owner.metadata.GetTraffic(pb.GetTrafficRequest(name=f"{name}/traffic"))).name
    await refused(FailedPrecondition, "IN_USE", mesh.service.remove(B))
    await mesh.service.remove(name)
    for call in (
        mesh.owner.metadata.GetTraffic(pb.GetTrafficRequest(name=f"{name}/traffic")),
        mesh.owner.metadata.GetDeploymentRevision(pb.GetDeploymentRevisionRequest(name=f"{name}/revisions/3")),
        mesh.owner.metadata.ListReplicas(pb.ListReplicasRequest(parent=name)),
    ):
        await refused(NotFound, "NOT_FOUND", call)
    await mesh.service.remove(B)


async def test_a_commit_happens_whole_or_not_at_all(mesh: Any) -> None:
    await mesh.project()
    write = records_pb2.CommitRecordsRequest.Write
    good = write(
        create=records_pb2.CreateRecordRequest(resource=resource_pb2.Resource(training=training_pb2.Training(name=T)))
    )
    missing = write(delete=records_pb2.DeleteRecordRequest(name="projects/p/trainings/none"))
    await refused(
        NotFound, "NOT_FOUND",
        mesh.service.records.CommitRecords(records_pb2.CommitRecordsRequest(writes=[good, missing])),
    )  # fmt: skip
    await refused(NotFound, "NOT_FOUND", mesh.owner.metadata.GetTraining(pb.GetTrainingRequest(name=T)))
    for writes in ([], [good] * 101, [write()]):
        await refused(
            InvalidArgument, "BAD_WRITES",
            mesh.service.records.CommitRecords(records_pb2.CommitRecordsRequest(writes=writes)),
        )  # fmt: skip
    update = write(
        update=records_pb2.UpdateRecordRequest(
            resource=resource_pb2.Resource(training=training_pb2.Training(name=T, notebook="second"))
        )
    )
    made = await mesh.service.records.CommitRecords(records_pb2.CommitRecordsRequest(writes=[good, update]))
    assert made.records[1].resource.training.notebook == "second"
    found = await mesh.owner.metadata.GetTraining(pb.GetTrainingRequest(name=T))
    assert found == made.records[1].resource.training


async def test_creating_is_answered_once(mesh: Any) -> None:
    await mesh.project()

    def create(fingerprint: bytes, name: str = T) -> Any:
        return mesh.service.record(
            "training", training_pb2.Training(name=name), request_id="one", request_fingerprint=fingerprint
        )

    first = await create(b"f")
    await mesh.service.change("training", training_pb2.Training(name=T, status=status(RUNNING)))
    assert await create(b"f") == first
    await refused(AlreadyExists, "REQUEST_ID_REUSED", create(b"g"))
    await refused(AlreadyExists, "REQUEST_ID_REUSED", create(b"g", "projects/p/trainings/u"))


async def test_a_change_is_made_once(mesh: Any) -> None:
    await mesh.project()
    await mesh.training()

    def change(fingerprint: bytes, warning: str = "first", **more: Any) -> Any:
        training = training_pb2.Training(name=T, warnings=[warning], **more)
        return mesh.service.change("training", training, request_id="one", request_fingerprint=fingerprint)

    first = await change(b"f")
    await mesh.service.change("training", training_pb2.Training(name=T, warnings=["second"]))
    assert await change(b"f") == first
    assert await change(b"f", etag="was current then") == first
    for again in (change(b"g"), change(b"g", "third")):
        await refused(AlreadyExists, "REQUEST_ID_REUSED", again)
    assert (await mesh.owner.metadata.GetTraining(pb.GetTrainingRequest(name=T))).warnings == ["second"]
    writes = [
        records_pb2.CommitRecordsRequest.Write(
            update=records_pb2.UpdateRecordRequest(
                resource=resource_pb2.Resource(training=training_pb2.Training(name=T, warnings=["x"])), request_id=each
            )
        )
        for each in ("one", "other")
    ]
    mixed = records_pb2.CommitRecordsRequest(writes=writes)
    await refused(InvalidArgument, "BAD_WRITES", mesh.service.records.CommitRecords(mixed))


async def test_changes_touch_what_they_name(mesh: Any) -> None:
    await mesh.project()
    made = await mesh.training(params_json='{"a": 1}', warnings=["x"])
    changed = await mesh.service.change("training", training_pb2.Training(name=T, status=status(RUNNING)))
    assert changed.params_json == '{"a": 1}' and changed.etag != made.etag
    progress = training_pb2.Training(name=T, status=task_status_pb2.TaskStatus(progress=0.5))
    changed = await mesh.service.change("training", progress, ["status.progress"])
    assert (changed.status.state, changed.status.progress) == (RUNNING, 0.5)
    changed = await mesh.service.change("training", training_pb2.Training(name=T), ["warnings", "status.progress"])
    assert not changed.warnings and changed.status.progress == 0
    for path in ("etag", "name", "create_time", "status.nonsense"):
        await refused(InvalidArgument, "BAD_MASK", mesh.service.change("training", progress, [path]))
    stale = training_pb2.Training(name=T, etag=made.etag, status=status(FAILED))
    await refused(Aborted, "STALE_ETAG", mesh.service.change("training", stale))


async def test_leases_keep_late_writers_out(mesh: Any) -> None:
    await mesh.project()
    records = mesh.service.records
    training = training_pb2.Training(name=T)
    created = await records.CreateRecord(
        records_pb2.CreateRecordRequest(
            resource=resource_pb2.Resource(training=training), lease_holder="one", lease_duration=Duration(seconds=60)
        )
    )
    assert created.lease.fence == 1 and created.lease.name == T
    taking = records_pb2.AcquireLeaseRequest(name=T, holder="two", duration=Duration(nanos=1))
    await refused(FailedPrecondition, "LEASED", records.AcquireLease(taking))
    await refused(FailedPrecondition, "LEASED", mesh.service.change("training", training, ["notebook"]))
    renewed = await records.AcquireLease(records_pb2.AcquireLeaseRequest(name=T, holder="one"))
    assert renewed.fence == 1
    await mesh.service.change("training", training_pb2.Training(name=T, notebook="n"), fence=1)
    await records.ReleaseLease(records_pb2.ReleaseLeaseRequest(name=T, fence=1))
    taken = await records.AcquireLease(taking)
    assert taken.fence == 2
    late = training_pb2.Training(name=T, notebook="late")
    for call in (
        mesh.service.change("training", late, fence=1),
        mesh.service.remove(T, fence=1),
        records.ReleaseLease(records_pb2.ReleaseLeaseRequest(name=T, fence=1)),
    ):
        await refused(Aborted, "STALE_FENCE", call)
    assert (await mesh.owner.metadata.GetTraining(pb.GetTrainingRequest(name=T))).notebook == "n"
    for seconds in (-1, 3601):
        request = records_pb2.AcquireLeaseRequest(name=T, holder="x", duration=Duration(seconds=seconds))
        await refused(InvalidArgument, "BAD_LEASE", records.AcquireLease(request))
    await refused(InvalidArgument, "BAD_LEASE", records.AcquireLease(records_pb2.AcquireLeaseRequest(name=T)))
    await mesh.build()
    unnumbered = records_pb2.AcquireLeaseRequest(name=B, holder="x")
    await refused(InvalidArgument, "BAD_NAME", records.AcquireLease(unnumbered))
    unnumbered.name = f"{B}@1"
    assert (await records.AcquireLease(unnumbered)).name == f"{B}@1"
    gone = records_pb2.AcquireLeaseRequest(name="projects/p/trainings/none", holder="x")
    await refused(NotFound, "NOT_FOUND", records.AcquireLease(gone))


async def test_every_blob_that_is_referred_to_is_listed(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    made = await mesh.owner.publish("models/m/versions/v", {"a": b"1", "b": b"2"})
    await mesh.owner.publish("models/m/versions/w", {"a": b"2", "b": b"3"})
    await mesh.service.record(
        "training", training_pb2.Training(name=T, executed_notebook={"path": "n", "digest": f"sha256:{'a' * 64}"})
    )

    async def listed(caller: Any) -> list[str]:
        request = records_pb2.ListReferencedDigestsRequest()
        return [digest async for each in caller.records.ListReferencedDigests(request) for digest in each.digests]

    found = await listed(mesh.service)
    assert found == sorted(found) and len(found) == 4 and made.files[0].digest in found
    assert await listed(mesh.caller(Principal(Kind.SERVICE, "store", tenant="another"))) == []
    await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name="models/m/versions/v"))
    assert made.files[0].digest not in await listed(mesh.service)


async def test_a_record_made_in_the_place_of_another_keeps_its_holder_out(mesh: Any) -> None:
    await mesh.project()
    records = mesh.service.records
    new = records_pb2.CreateRecordRequest(
        resource=resource_pb2.Resource(training=training_pb2.Training(name=T, notebook="first")),
        lease_holder="one", lease_duration=Duration(seconds=60),
    )  # fmt: skip
    first = (await records.CreateRecord(new)).resource.training
    await records.ReleaseLease(records_pb2.ReleaseLeaseRequest(name=T, fence=1))
    new.resource.training.notebook = "second"
    both = records_pb2.CommitRecordsRequest()
    both.writes.add(delete=records_pb2.DeleteRecordRequest(name=T, etag="not this"))
    both.writes.add(create=new)
    await refused(Aborted, "STALE_ETAG", records.CommitRecords(both))
    both.writes[0].delete.etag = first.etag
    made = (await records.CommitRecords(both)).records[-1]
    found = await mesh.owner.metadata.GetTraining(pb.GetTrainingRequest(name=T))
    assert found == made.resource.training and found.notebook == "second"
    assert found.create_time.ToNanoseconds() > first.create_time.ToNanoseconds()
    assert made.lease.fence == 2
    await mesh.service.change("training", training_pb2.Training(name=T, notebook="mine"), fence=2)
    late = training_pb2.Training(name=T, notebook="late")
    await refused(Aborted, "STALE_FENCE", mesh.service.change("training", late, fence=1))
