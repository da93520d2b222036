"""What the services that own a resource's life write: builds, trainings, notebooks, deployments, islands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noronha.chassis import request_ids
from noronha.chassis.durations import seconds_of
from noronha.chassis.principals import Principal
from noronha.metadata import deletion, documents, kinds, masks, references
from noronha.metadata.backend import Childless, Key, Lease, Means, Unchanged
from noronha.metadata.catalog import Catalog
from noronha.metadata.drafts import Draft, Found, Once, check_etag, settle
from noronha.metadata.fields import Violations
from noronha.rpc import json_text, names
from noronha.rpc.errors import FailedPrecondition, InvalidArgument
from noronha.rpc.names import Name
from noronha.v1 import records_pb2, task_status_pb2

MAX_WRITES = 100
"""Most writes in one commit."""

DEFAULT_LEASE = 30.0
MAX_LEASE = 3600.0

_FIXED = frozenset({"name", "create_time", "update_time", "etag"})


async def commit(catalog: Catalog, caller: Principal, writes: Sequence[Any]) -> Any:
    """Makes several writes in one commit and answers the records they made.

    Raises InvalidArgument; NotFound; AlreadyExists, also ``REQUEST_ID_REUSED``; Aborted ``STALE_ETAG``,
    ``STALE_FENCE``; FailedPrecondition ``LEASED``, ``IN_USE``.
    """
    if not 1 <= len(writes) <= MAX_WRITES:
        raise InvalidArgument(f"a commit has 1 to {MAX_WRITES} writes, not {len(writes)}", reason="BAD_WRITES")

    async def attempt(draft: Draft) -> Any:
        made = records_pb2.CommitRecordsResponse()
        for write in writes:
            kind = write.WhichOneof("kind")
            if kind == "create":
                made.records.append(await _create(draft, write.create))
            elif kind == "update":
                made.records.append(await _update(draft, write.update))
            elif kind == "delete":
                await _delete(draft, write.delete)
                made.records.add()
            else:
                raise InvalidArgument("a write says nothing of what to do", reason="BAD_WRITES")
        return made

    kinds_of_writes = [(write, write.WhichOneof("kind")) for write in writes]
    once = _once_of(caller, [getattr(write, kind) for write, kind in kinds_of_writes if kind in ("create", "update")])
    return await settle(catalog.records, caller.tenant, once, records_pb2.CommitRecordsResponse, attempt)


def _once_of(caller: Principal, writes: Sequence[Any]) -> Once | None:
    found = {(each.request_id, each.request_fingerprint) for each in writes if each.request_id}
    if not found:
        return None
    if len(found) > 1:
        raise InvalidArgument("the writes of a commit come from one request; send one request_id", reason="BAD_WRITES")
    request_id, fingerprint = found.pop()
    return Once(f"records/{caller.subject}/{request_ids.check(request_id)}", fingerprint)


def lease_message(key: Key, lease: Lease) -> Any:
    """Returns a lease as it is told."""
    return records_pb2.Lease(
        name=kinds.full_name(key), holder=lease.holder, fence=lease.fence,
        expire_time=documents.timestamp(lease.expire_time),
    )  # fmt: skip


def _record(key: Key, message: Any, lease: Lease | None) -> Any:
    record = records_pb2.Record(resource=kinds.wrap(key.kind, message))
    if lease is not None:
        record.lease.CopyFrom(lease_message(key, lease))
    return record


def _resource_of(request: Any) -> tuple[str, Any]:
    kind = request.resource.WhichOneof("kind")
    if kind not in kinds.OWNED:
        raise InvalidArgument(
            f"records of kind {kind or 'none'} are not written here; Metadata has calls for them",
            reason="NOT_OWNED", kind=kind or "",
        )  # fmt: skip
    return kind, getattr(request.resource, kind)


def _check(kind: str, message: Any) -> None:
    """Checks the fields that users fill, and writes their defaults out."""
    wrong = Violations()
    if kinds.has_field(kind, "labels"):
        wrong.labels(f"{kind}.labels", message.labels)
    wrong.settle()
    holders = [(kind, message)]
    if kind in ("deployment", "deployment_revision"):
        holders.append((f"{kind}.spec", message.spec))
    for path, holder in holders:
        for field in ("details_json", "params_json"):
            if field in holder.DESCRIPTOR.fields_by_name:
                json_text.read(getattr(holder, field), f"{path}.{field}")
                setattr(holder, field, getattr(holder, field) or "{}")


def lease_seconds(duration: Any) -> float:
    """Returns how long a lease lasts. Raises InvalidArgument ``BAD_LEASE``."""
    seconds = seconds_of(duration)
    if not 0 <= seconds <= MAX_LEASE:
        raise InvalidArgument(f"a lease lasts up to {MAX_LEASE:.0f} s, not {seconds:g} s", reason="BAD_LEASE")
    return seconds or DEFAULT_LEASE


async def _create(draft: Draft, request: Any) -> Any:
    kind, sent = _resource_of(request)
    message = type(sent)()
    message.CopyFrom(sent)
    name = names.parse(message.name, kind, field=f"{kind}.name", wildcard=kind == "deployment_revision")
    if name.revision is not None or "-" in name.ids[:-1]:
        raise names.bad_name(message.name, f"{kind}.name", "is no name to create a record under")
    parent = names.parent_of(name)
    if parent:
        await draft.refer(kinds.parse(parent))
    _check(kind, message)
    await references.complete_owned(draft, kind, message)
    current = True
    if kind == "build":
        key, current = await _next_build(draft, name, message)
    elif kind == "deployment_revision":
        bare = name.bare.rpartition("/")[0]
        # They go with their deployment and nobody else keeps their numbers, so a new one counts from 1.
        there = [number for number, _ in await draft.records.revisions(draft.tenant, bare)]
        key = Key(kind, bare, _next_number(draft, kind, bare, max(there, default=0)))
        message.name = kinds.full_name(key)
    else:
        key = kinds.key_of(name)
        await deletion.must_be_free(draft, key)
    lease = None
    taken = None
    if request.lease_holder:
        seconds = lease_seconds(request.lease_duration)
        taken = (request.lease_holder, seconds)
        lease = Lease(request.lease_holder, await draft.next_fence(key), draft.now + int(seconds * 1e6))
    draft.create(key, message, current=current, lease=taken)
    return _record(key, message, lease)


def _next_number(draft: Draft, kind: str, name: str, highest: int) -> int:
    """Returns the number that follows the highest of a name; that nobody else takes it follows from its key."""
    number = highest + 1
    while draft.has_written(Key(kind, name, number)):
        number += 1
    return number


def _succeeded(message: Any) -> bool:
    return bool(message.status.state == task_status_pb2.TaskStatus.SUCCEEDED)


async def _next_build(draft: Draft, name: Name, build: Any) -> tuple[Key, bool]:
    """Returns the key of a tag's next build, and whether the bare name means it at once."""
    build.revision = _next_number(draft, "build", name.bare, await draft.records.highest(draft.tenant, name.bare))
    return Key("build", name.bare, build.revision), await _is_meant(draft, name.bare, build)


async def _is_meant(draft: Draft, name: str, build: Any) -> bool:
    """Says whether a tag means this build from now on: the newest that succeeded, else the newest."""
    meant = await draft.find(Key("build", name))
    if meant is None or meant.version:
        draft.require(Means(name, meant.key.revision if meant else 0))
    if meant is None:
        return True
    if _succeeded(build) != _succeeded(meant.message):
        return _succeeded(build)
    return bool(build.revision >= meant.key.revision)


async def _update(draft: Draft, request: Any) -> Any:
    kind, sent = _resource_of(request)
    if kind == "deployment_revision":
        raise FailedPrecondition("a revision of a deployment never changes; make the next one", reason="IMMUTABLE")
    name = names.parse(sent.name, kind, field=f"{kind}.name")
    fixed = _FIXED
    if kind == "build":
        if name.revision is not None or not sent.revision:
            raise InvalidArgument("the update of a build says which in its revision", reason="BAD_NAME")
        name = Name("build", name.ids, sent.revision)
        fixed = _FIXED | {"revision"}
    paths = masks.paths_of(sent, request.update_mask, fixed)
    found = await draft.read(name)
    check_etag(sent.etag, found)
    message = type(sent)()
    message.CopyFrom(found.message)
    masks.copy_paths(sent, message, paths)
    _check(kind, message)
    await references.complete_owned(draft, kind, message, [path.partition(".")[0] for path in paths])
    current = None
    if kind == "build" and _succeeded(message):
        current = await _is_meant(draft, name.bare, message)
    draft.replace(found, message, current=current, fence=request.fence)
    return _record(found.key, message, found.lease)


async def _delete(draft: Draft, request: Any) -> None:
    name = names.parse(request.name, *sorted(kinds.OWNED))
    found = await draft.read(name)
    if kinds.has_field(name.kind, "etag"):
        check_etag(request.etag, found)
    if name.kind == "build":
        await _delete_build(draft, request, name, found)
        return
    if name.kind == "deployment":
        prefix = f"{name.bare}/"
        for key, version in await draft.records.below(draft.tenant, prefix):
            if not draft.has_written(key):
                draft.delete(key, version)
        draft.require(Childless(prefix))
    draft.delete(found.key, found.version, fence=request.fence)
    await deletion.clear_mentions(draft, found.key.name, found.key.revision or None)


async def _delete_build(draft: Draft, request: Any, name: Name, found: Found) -> None:
    users = await deletion.users_of(draft, name.bare, name.revision)
    if users:
        raise deletion.in_use(str(name), users, "delete them first")
    revisions = await draft.records.revisions(draft.tenant, name.bare)
    if name.revision is None or len(revisions) == 1:
        for revision, version in revisions:
            # A fence belongs to one revision's lease: that of what the bare name means. The others must be free.
            fence = request.fence if revision == found.key.revision else 0
            draft.delete(Key("build", name.bare, revision), version, fence=fence)
    else:
        follower = await _follower(draft, found, revisions)
        draft.delete(found.key, found.version, current=follower, fence=request.fence)
    meant = await draft.records.get(draft.tenant, name.bare)
    draft.require(Means(name.bare, meant.key.revision if meant else 0))
    await deletion.clear_mentions(draft, name.bare, name.revision)


async def _follower(draft: Draft, found: Found, revisions: list[tuple[int, int]]) -> int | None:
    """Returns the revision that a tag means once one is gone, None when it meant another."""
    meant = await draft.records.get(draft.tenant, found.key.name)
    if meant is None or meant.key.revision != found.key.revision:
        return None
    newest = None
    for revision, version in revisions:
        if revision == found.key.revision:
            continue
        other = await draft.find(Key("build", found.key.name, revision))
        if other is None:
            continue
        draft.require(Unchanged(other.key, version))
        if _succeeded(other.message):
            return revision
        newest = newest or revision
    return newest


def _leased_key(name: str) -> Key:
    parsed = names.parse(name)
    if parsed.kind in names.REVISIONED and parsed.revision is None:
        raise names.bad_name(name, "name", "names no revision; leases are of one, so add @1")
    return kinds.key_of(parsed)


async def acquire(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Takes or renews a lease. Raises NotFound; FailedPrecondition ``LEASED``; InvalidArgument."""
    key = _leased_key(request.name)
    if not 1 <= len(request.holder) <= 256:
        raise InvalidArgument("a lease needs a holder of 1 to 256 characters", reason="BAD_LEASE")
    seconds = lease_seconds(request.duration)
    return lease_message(key, await catalog.records.acquire(caller.tenant, key, request.holder, seconds))


async def release(catalog: Catalog, caller: Principal, request: Any) -> None:
    """Gives a lease back. Raises Aborted ``STALE_FENCE``."""
    await catalog.records.release(caller.tenant, _leased_key(request.name), request.fence)
