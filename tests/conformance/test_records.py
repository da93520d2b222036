"""What every backend of Metadata must do: one suite, bound to each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from noronha.metadata.backend import (
    Childless,
    Commit,
    Conflict,
    Delete,
    Exists,
    Key,
    Means,
    Place,
    Put,
    Records,
    Reference,
    Request,
    Scan,
    Strength,
    Unchanged,
    Unreferenced,
)
from noronha.metadata.backends.memory import MemoryRecords
from noronha.metadata.backends.sqlite import SqliteRecords
from noronha.metadata.filters import EVERYTHING, parse
from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)


def key(name: str, kind: str = "project", revision: int = 0) -> Key:
    return Key(kind, name, revision)


def put(name: str, body: bytes = b"body", *, kind: str = "project", revision: int = 0, **more: Any) -> Put:
    more.setdefault("document", json.dumps({"name": name, "revision": revision}))
    more.setdefault("create_time", 1)
    more.setdefault("update_time", 1)
    return Put(Key(kind, name, revision), body, **more)


async def write(records: Records, *writes: Put | Delete, tenant: str = "t", **more: Any) -> int:
    return (await records.commit(tenant, Commit(writes, **more))).position


async def names(records: Records, scan: Scan, tenant: str = "t") -> list[str]:
    """Reads every page of a scan."""
    found: list[str] = []
    for _ in range(1000):
        page = await records.scan(tenant, scan)
        found += [
            f"{each.key.name}@{each.key.revision}" if each.key.revision else each.key.name for each in page.records
        ]
        if page.following is None:
            return found
        scan = Scan(**{**scan.__dict__, "after": page.following})
    raise AssertionError("the scan does not end")


class RecordsSuite:
    """Bind it by a fixture ``records`` that yields an open, empty backend whose journal keeps at least 1,000 changes."""

    async def test_what_is_written_is_read(self, records: Records) -> None:
        position = await write(records, put("projects/a", b"1"), put("projects/b", b"2"))
        record = await records.get("t", "projects/b")
        assert record is not None and record.body == b"2" and record.version == position
        assert (await records.get("t", "projects/b", 0)) == record
        assert await records.get("t", "projects/c") is None
        await write(records, Delete(key("projects/b")))
        assert await records.get("t", "projects/b") is None

    async def test_tenants_do_not_meet(self, records: Records) -> None:
        await write(records, put("projects/a", b"mine", digests=("sha256:" + "a" * 64,)), tenant="one")
        await write(records, put("projects/a", b"other", expect=0), tenant="two")
        record = await records.get("one", "projects/a")
        assert record is not None and record.body == b"mine"
        assert await names(records, Scan("project"), "two") == ["projects/a"]
        assert [each async for each in records.digests("two")] == []
        assert await records.mentions("two", "projects/a") == []

    async def test_a_stale_write_is_refused_and_writes_nothing(self, records: Records) -> None:
        await write(records, put("projects/a", b"1"))
        first = await records.get("t", "projects/a")
        assert first is not None
        await write(records, put("projects/a", b"2", expect=first.version))
        with pytest.raises(Conflict) as caught:
            await write(records, put("projects/new"), put("projects/a", b"3", expect=first.version))
        assert caught.value.broken == Unchanged(key("projects/a"), first.version)
        assert await records.get("t", "projects/new") is None
        record = await records.get("t", "projects/a")
        assert record is not None and record.body == b"2"

    async def test_a_version_never_comes_back(self, records: Records) -> None:
        await write(records, put("projects/a", b"same"))
        before = await records.get("t", "projects/a")
        await write(records, Delete(key("projects/a")))
        await write(records, put("projects/a", b"same"))
        after = await records.get("t", "projects/a")
        assert before is not None and after is not None and before.version != after.version

    async def test_only_one_of_many_racing_creates_wins(self, records: Records) -> None:
        done = await asyncio.gather(
            *(write(records, put("projects/x", b"%d" % each, expect=0)) for each in range(16)), return_exceptions=True
        )
        assert sum(isinstance(each, int) for each in done) == 1
        assert all(isinstance(each, (int, Conflict)) for each in done)

    async def test_compare_and_swap_loses_no_increment(self, records: Records) -> None:
        await write(records, put("projects/n", b"0"))

        async def increment() -> None:
            while True:
                record = await records.get("t", "projects/n")
                assert record is not None
                try:
                    await write(records, put("projects/n", b"%d" % (int(record.body) + 1), expect=record.version))
                    return
                except Conflict:
                    await asyncio.sleep(0)

        await asyncio.gather(*(increment() for _ in range(20)))
        record = await records.get("t", "projects/n")
        assert record is not None and record.body == b"20"

    async def test_what_was_answered_is_read_by_name_and_by_list(self, records: Records) -> None:
        for each in range(50):
            await write(records, put("projects/x", b"%d" % each))
            record = await records.get("t", "projects/x")
            page = await records.scan("t", Scan("project"))
            assert record is not None and record.body == b"%d" % each == page.records[0].body

    async def test_conditions(self, records: Records) -> None:
        await write(records, put("models/m", kind="model"))
        await write(records, put("models/m/versions/v", kind="model_version", revision=1))
        for holding in (
            Exists(key("models/m")),
            Exists(key("models/m/versions/v", "model_version", 1)),
            Exists(key("models/m/versions/v", "model_version")),
            Unchanged(key("models/none"), 0),
            Means("models/m/versions/v", 1),
            Means("models/m/versions/none", 0),
            Unreferenced("models/m"),
            Unreferenced("models/"),
            Childless("models/none/"),
        ):
            await write(records, put("projects/ok"), conditions=(holding,))
        for broken in (
            Exists(key("models/none")),
            Exists(key("models/m/versions/v", "model_version", 2)),
            Unchanged(key("models/m"), 0),
            Unchanged(key("models/m"), 999),
            Means("models/m/versions/v", 2),
            Means("models/m/versions/v", 0),
            Childless("models/m/"),
        ):
            with pytest.raises(Conflict) as caught:
                await write(records, put("projects/no"), conditions=(broken,))
            assert caught.value.broken == broken
        assert await records.get("t", "projects/no") is None

    async def test_references_guard_their_targets(self, records: Records) -> None:
        version = key("models/m/versions/v", "model_version", 2)
        binding = Reference("model_version", version, Strength.BINDING)
        await write(records, put("models/m/aliases/a", kind="alias", references=(binding,)))
        trace = Reference("dataset", key("models/m/datasets/d", "dataset", 1))
        await write(records, put("projects/p/trainings/t", kind="training", references=(trace,)))
        for guarded in (
            Unreferenced(version.name),
            Unreferenced(version.name, 2),
            Unreferenced(version.name, strengths=(Strength.BINDING,)),
            Unreferenced("models/m/"),
        ):
            with pytest.raises(Conflict):
                await write(records, put("projects/x"), conditions=(guarded,))
        for free in (
            Unreferenced(version.name, strengths=(Strength.CLEARED,)),
            Unreferenced(version.name, 1),
            Unreferenced("models/m/datasets/d"),
            Unreferenced("models/o/"),
        ):
            await write(records, put("projects/x"), conditions=(free,))
        found = await records.mentions("t", "models/m/")
        assert [(each.source.name, each.reference) for each in found] == [
            ("models/m/aliases/a", binding),
            ("projects/p/trainings/t", trace),
        ]
        assert await records.mentions("t", version.name, 1) == []
        assert len(await records.mentions("t", version.name, 2)) == 1
        # None keeps the references, () takes them away; those of what the commit itself writes do not count.
        await write(records, put("models/m/aliases/a", b"new", kind="alias", references=None))
        assert len(await records.mentions("t", version.name)) == 1
        await write(records, Delete(key("models/m/aliases/a", "alias")), conditions=(Unreferenced(version.name),))
        assert await records.mentions("t", version.name) == []

    async def test_reference_and_deletion_race_safely(self, records: Records) -> None:
        """Whoever comes first, a reference never points at what was deleted."""
        for turn in range(10):
            target = key(f"models/m{turn}", "model")
            await write(records, put(target.name, kind="model"))
            reference = Reference("models", target, Strength.BINDING)
            done = await asyncio.gather(
                write(records, put(f"projects/p{turn}", references=(reference,)), conditions=(Exists(target),)),
                write(records, Delete(target), conditions=(Unreferenced(target.name),)),
                return_exceptions=True,
            )
            assert sum(isinstance(each, Conflict) for each in done) == 1, done

    async def test_revisions(self, records: Records) -> None:
        name = "models/m/versions/v"
        for revision in (1, 2, 3):
            await write(records, put(name, b"%d" % revision, kind="model_version", revision=revision))
        await write(records, put(name, b"4", kind="model_version", revision=4, current=False))
        current = await records.get("t", name)
        assert current is not None and current.body == b"3"
        assert [revision for revision, _ in await records.revisions("t", name)] == [4, 3, 2, 1]
        assert await records.highest("t", name) == 4
        one = await records.get("t", name, 1)
        assert one is not None and one.body == b"1"
        await write(records, put(name, b"2b", kind="model_version", revision=2))
        current = await records.get("t", name)
        assert current is not None and current.body == b"2b"
        await write(records, put(name, b"2c", kind="model_version", revision=2, current=False))
        current = await records.get("t", name)
        assert current is None or current.body == b"2c", "a write that is not current takes nothing from the name"

    async def test_the_highest_revision_is_remembered_also_when_the_name_is_gone(self, records: Records) -> None:
        name = "models/m/versions/v"
        for revision in (1, 2):
            await write(records, put(name, kind="model_version", revision=revision))
        await write(records, Delete(key(name, "model_version", 2), current=1))
        current = await records.get("t", name)
        assert current is not None and current.key.revision == 1
        assert await records.highest("t", name) == 2
        await write(records, Delete(key(name, "model_version", 1)))
        assert await records.highest("t", name) == 2
        assert await records.get("t", name) is None
        assert await records.highest("t", "models/m/versions/other") == 0

    async def test_scans_are_in_order_and_keep_their_place(self, records: Records) -> None:
        wanted = []
        for each in ("a", "a-b", "a.b", "a0", "B", "b", "b-1", "z"):
            await write(records, put(f"models/m/datasets/{each}", kind="dataset", revision=1))
            await write(records, put(f"models/m/datasets/{each}", kind="dataset", revision=2))
            wanted.append(f"models/m/datasets/{each}")
        wanted.sort()
        await write(records, put("models/m", kind="model"), put("models/n/datasets/x", kind="dataset", revision=1))
        scan = Scan("dataset", prefix="models/m/datasets/", limit=3)
        assert await names(records, scan) == [f"{each}@2" for each in wanted]
        assert await names(records, Scan("dataset", prefix="models/m/datasets/", limit=3, descending=True)) == [
            f"{each}@2" for each in reversed(wanted)
        ]
        both = [f"{each}@{revision}" for each in wanted for revision in (2, 1)]
        assert await names(records, Scan("dataset", limit=3, every_revision=True, prefix="models/m/")) == both
        # What comes before the place a page ended at does not move what follows it.
        page = await records.scan("t", scan)
        await write(records, put("models/m/datasets/A-first", kind="dataset", revision=1))
        await write(records, Delete(key(wanted[1], "dataset", 2), current=1))
        rest = await names(records, Scan("dataset", prefix="models/m/datasets/", limit=3, after=page.following))
        assert rest == [f"{each}@2" for each in wanted[3:]]

    async def test_scans_by_time(self, records: Records) -> None:
        for index, each in enumerate("cabed"):
            await write(records, put(f"projects/{each}", create_time=index // 2, update_time=-index))
        assert await names(records, Scan("project", order="create_time", limit=2)) == [
            f"projects/{each}" for each in "acbed"
        ]
        assert await names(records, Scan("project", order="create_time", descending=True, limit=1)) == [
            f"projects/{each}" for each in "dbeac"
        ]
        assert await names(records, Scan("project", order="update_time", limit=2)) == [
            f"projects/{each}" for each in "debac"
        ]

    async def test_scans_by_shape(self, records: Records) -> None:
        for project in ("p", "q"):
            for deployment in ("d", "e"):
                name = f"projects/{project}/deployments/{deployment}/replicas/r"
                await write(records, put(name, kind="replica"))
        shape = ("projects", "-", "deployments", "d", "replicas", "-")
        assert await names(records, Scan("replica", prefix="projects/", shape=shape)) == [
            "projects/p/deployments/d/replicas/r",
            "projects/q/deployments/d/replicas/r",
        ]

    async def test_scans_with_a_filter_end_and_find_all(self, records: Records) -> None:
        await write(
            records,
            *(put(f"projects/p{each:04}", document=json.dumps({"n": each % 7})) for each in range(500)),
        )
        found = await names(records, Scan("project", filter=parse('{"n": 3}'), limit=10))
        assert found == [f"projects/p{each:04}" for each in range(500) if each % 7 == 3]
        assert await names(records, Scan("project", filter=parse('{"n": 8}'))) == []
        # Pages may end before they are full, when they take too long or grow too large.
        assert await names(records, Scan("project", filter=parse('{"n": 3}'), max_seconds=0, limit=10)) == found
        assert await names(records, Scan("project", filter=parse('{"n": 3}'), max_bytes=5)) == found
        page = await records.scan("t", Scan("project", max_bytes=9))
        assert len(page.records) == 2 and page.following is not None

    async def test_below(self, records: Records) -> None:
        await write(
            records,
            put("projects/p"), put("projects/p/builds/b", kind="build", revision=2),
            put("projects/p/builds/b", kind="build", revision=1), put("projects/p-q"), put("projects/p0"),
        )  # fmt: skip
        found = await records.below("t", "projects/p/")
        assert [each for each, _ in found] == [
            key("projects/p/builds/b", "build", 2), key("projects/p/builds/b", "build", 1)
        ]  # fmt: skip

    async def test_search(self, records: Records) -> None:
        await write(
            records,
            put("projects/a", text="a\nthe iris flowers"), put("models/iris", kind="model", text="iris"),
            put("models/iris/versions/v", kind="model_version", revision=1, text="iris/v old"),
            put("models/iris/versions/v", kind="model_version", revision=2, text="iris/v new"),
            put("chests/iris", kind="chest", text="iris"),
        )  # fmt: skip
        kinds = ("project", "model", "model_version")
        page = await records.search("t", "iris", kinds, None, 2, EVERYTHING)
        assert [each.key.name for each in page.records] == ["models/iris", "models/iris/versions/v"]
        assert page.following is not None
        page = await records.search("t", "iris", kinds, page.following, 2, EVERYTHING)
        assert [each.key.name for each in page.records] == ["projects/a"] and page.following is None
        assert (await records.search("t", "old", kinds, None, 2, EVERYTHING)).records == []
        assert (await records.search("t", "iris", kinds, Place(0, "projects/a", 0), 2, EVERYTHING)).records == []

    async def test_digests(self, records: Records) -> None:
        def digest(number: int) -> str:
            return f"sha256:{number:064x}"

        await write(records, put("projects/a", digests=(digest(3), digest(1), digest(3))))
        await write(records, put("projects/b", digests=(digest(2), digest(1))))
        assert [each async for each in records.digests("t")] == [[digest(1), digest(2), digest(3)]]
        await write(records, put("projects/a", digests=None), Delete(key("projects/b")))
        assert [each async for each in records.digests("t")] == [[digest(1), digest(3)]]
        await write(records, put("projects/a"))
        assert [each async for each in records.digests("t")] == []

    async def test_a_request_is_answered_once(self, records: Records) -> None:
        request = Request("user/1", b"print", b"answer")
        assert await records.answered("t", request) is None
        await write(records, put("projects/a", expect=0), request=request)
        again = await records.commit("t", Commit((put("projects/a", b"2", expect=0),), request=request))
        assert again.repeated == b"answer"
        record = await records.get("t", "projects/a")
        assert record is not None and record.body == b"body"
        assert await records.answered("t", request) == b"answer"
        other = Request("user/1", b"other", b"")
        with pytest.raises(AlreadyExists) as caught:
            await write(records, put("projects/b"), request=other)
        assert caught.value.reason == "REQUEST_ID_REUSED"
        with pytest.raises(AlreadyExists):
            await records.answered("t", other)
        await write(records, put("projects/b"), request=other, tenant="another")

    async def test_a_request_that_failed_is_not_remembered(self, records: Records) -> None:
        await write(records, put("projects/a"))
        request = Request("user/1", b"print", b"answer")
        with pytest.raises(Conflict):
            await write(records, put("projects/a", expect=0), request=request)
        assert await records.answered("t", request) is None

    async def test_racing_repeats_write_once(self, records: Records) -> None:
        request = Request("user/1", b"print", b"answer")
        done = await asyncio.gather(
            *(records.commit("t", Commit((put("projects/a", expect=0),), request=request)) for _ in range(8))
        )
        assert sum(each.repeated is None for each in done) == 1

    async def test_the_fence_tells_a_late_holder_whether_anybody_held_the_lease_meanwhile(self, records: Records) -> None:
        one = key("projects/p/trainings/t", "training")
        await write(records, put(one.name, kind="training", fence=0))
        mine = await records.acquire("t", one, "me", 0.0)
        assert (await records.acquire("t", one, "me", 0.0)).fence == mine.fence, "it ran out and nobody took it"
        yours = await records.acquire("t", one, "you", 0.0)
        await records.release("t", one, yours.fence)
        assert (await records.acquire("t", one, "me", 60)).fence > yours.fence > mine.fence

    async def test_leases(self, records: Records) -> None:
        one = key("projects/p/trainings/t", "training")
        with pytest.raises(NotFound):
            await records.acquire("t", one, "me", 60)
        await write(records, put(one.name, kind="training", fence=0))
        mine = await records.acquire("t", one, "me", 60)
        renewed = await records.acquire("t", one, "me", 120)
        assert renewed.fence == mine.fence and renewed.expire_time > mine.expire_time
        record = await records.get("t", one.name)
        assert record is not None and record.lease == renewed
        with pytest.raises(FailedPrecondition) as caught:
            await records.acquire("t", one, "you", 60)
        assert caught.value.reason == "LEASED"
        with pytest.raises(FailedPrecondition) as caught:
            await write(records, put(one.name, kind="training", fence=0))
        assert caught.value.reason == "LEASED"
        await write(records, put(one.name, b"by me", kind="training", fence=mine.fence))
        await write(records, put(one.name, b"by rule", kind="training"))
        await records.release("t", one, mine.fence)
        await records.release("t", one, mine.fence)
        yours = await records.acquire("t", one, "you", 60)
        assert yours.fence > mine.fence
        for attempt in (
            write(records, put(one.name, kind="training", fence=mine.fence)),
            write(records, Delete(one, fence=mine.fence)),
            records.release("t", one, mine.fence),
        ):
            with pytest.raises(Aborted) as stale:
                await attempt
            assert stale.value.reason == "STALE_FENCE"
        await write(records, Delete(one, fence=yours.fence))
        await records.release("t", one, yours.fence)

    async def test_a_lease_that_ran_out_can_be_taken(self, records: Records) -> None:
        one = key("projects/p/trainings/t", "training")
        done = await records.commit("t", Commit((put(one.name, kind="training", lease=("me", 0.0)),)))
        mine = done.leases[one]
        # Nobody took it yet, so what its last holder writes harms nobody.
        await write(records, put(one.name, kind="training", fence=mine.fence))
        await write(records, put(one.name, kind="training", fence=0))
        taken = await asyncio.gather(
            *(records.acquire("t", one, f"holder-{each}", 60) for each in range(8)), return_exceptions=True
        )
        assert sum(not isinstance(each, Exception) for each in taken) == 1
        with pytest.raises(Aborted):
            await write(records, put(one.name, kind="training", fence=mine.fence))

    async def test_a_lease_changes_neither_version_nor_journal(self, records: Records) -> None:
        one = key("projects/p/trainings/t", "training")
        position = await write(records, put(one.name, kind="training"))
        lease = await records.acquire("t", one, "me", 60)
        await records.release("t", one, lease.fence)
        record = await records.get("t", one.name)
        assert record is not None and record.version == position == await records.position()

    async def test_the_journal_tells_each_change_in_order(self, records: Records) -> None:
        start = await records.position()
        await write(records, put("projects/a"), put("projects/b"))
        await write(records, Delete(key("projects/a")), tenant="t")
        await write(records, put("projects/c"), tenant="u")
        changes = await records.changes(start, 100)
        assert [(each.tenant, each.key.name, each.deleted) for each in changes] == [
            ("t", "projects/a", False),
            ("t", "projects/b", False),
            ("t", "projects/a", True),
            ("u", "projects/c", False),
        ]
        positions = [each.position for each in changes]
        assert positions == sorted(set(positions)) and positions[-1] == await records.position()
        assert await records.changes(positions[1], 1) == changes[2:3]
        assert await records.changes(positions[-1], 10) == []
        with pytest.raises(OutOfRange):
            await records.changes(positions[-1] + 1, 10)

    async def test_a_compacted_journal_says_so(self, records: Records) -> None:
        start = await records.position()
        for each in range(10):
            await write(records, put(f"projects/{each}"))
        await records.compact(3)
        newest = await records.position()
        assert len(await records.changes(newest - 3, 100)) == 3
        for after in (start, newest - 4):
            with pytest.raises(OutOfRange) as caught:
                await records.changes(after, 100)
            assert caught.value.reason == "RESUME_TOKEN_TOO_OLD"
        await records.compact(0)
        assert await records.position() == newest
        assert await records.changes(newest, 10) == []
        assert await write(records, put("projects/x")) > newest

    async def test_waiting_ends_with_a_change(self, records: Records) -> None:
        position = await records.position()
        waiting = asyncio.create_task(records.wait(position, 60, lambda change: change.key.name == "projects/a"))
        await asyncio.sleep(0)
        await write(records, put("projects/a"))
        await asyncio.wait_for(waiting, 10)
        await asyncio.wait_for(records.wait(position, 60, lambda change: True), 10)
        await records.wait(await records.position(), 0.01, lambda change: True)

    async def test_waiting_goes_on_over_changes_that_nobody_cares_for(self, records: Records) -> None:
        position = await records.position()
        waiting = asyncio.create_task(records.wait(position, 60, lambda change: change.key.name == "projects/b"))
        await asyncio.sleep(0)
        seen = await write(records, put("projects/a"))
        other = asyncio.create_task(records.wait(seen, 60, lambda change: change.key.name == "projects/a"))
        await asyncio.sleep(0)
        await write(records, put("projects/b"))
        await asyncio.wait_for(waiting, 10)
        assert not other.done()
        other.cancel()

    async def test_values_are_kept(self, records: Records) -> None:
        done = await asyncio.gather(*(records.value("key", b"%d" % each) for each in range(4)))
        assert len(set(done)) == 1
        assert await records.value("key", b"other") == done[0]
        assert await records.value("key2", b"other") == b"other"

    async def test_everything_above_holds_for_large_bodies(self, records: Records) -> None:
        body = os.urandom(3 << 20)
        await write(records, put("projects/large", body))
        record = await records.get("t", "projects/large")
        assert record is not None and record.body == body


class TestMemory(RecordsSuite):
    binds = MemoryRecords

    @pytest.fixture
    async def records(self) -> Any:
        records = MemoryRecords()
        yield records
        await records.close()


class TestSqlite(RecordsSuite):
    binds = SqliteRecords

    @pytest.fixture
    async def records(self, tmp_path: Any) -> Any:
        records = SqliteRecords(tmp_path / "records.sqlite")
        yield records
        await records.close()

    async def test_everything_is_there_after_a_restart(self, tmp_path: Any) -> None:
        path = tmp_path / "again.sqlite"
        records = SqliteRecords(path)
        position = await write(records, put("projects/a"), request=Request("1", b"f", b"answer"))
        lease = await records.acquire("t", key("projects/a"), "me", 60)
        value = await records.value("key", b"1")
        await records.close()
        with pytest.raises(Unavailable):
            await write(records, put("projects/b"))
        records = SqliteRecords(path)
        record = await records.get("t", "projects/a")
        assert record is not None and record.lease == lease and record.version == position
        assert await records.value("key", b"2") == value
        assert await records.answered("t", Request("1", b"f", b"")) == b"answer"
        assert await records.position() == position
        assert [each.key.name for each in await records.changes(0, 10)] == ["projects/a"]
        await records.compact(0)
        await records.close()
        records = SqliteRecords(path)
        assert await records.position() == position
        await records.close()

    async def test_one_process_at_a_time(self, tmp_path: Any, records: Records) -> None:
        with pytest.raises(FailedPrecondition) as caught:
            SqliteRecords(tmp_path / "records.sqlite")
        assert caught.value.reason == "RECORDS_IN_USE"

    async def test_a_newer_file_is_left_alone(self, tmp_path: Any) -> None:
        import sqlite3

        path = tmp_path / "newer.sqlite"
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version = 999")
        connection.close()
        with pytest.raises(FailedPrecondition) as caught:
            SqliteRecords(path)
        assert caught.value.reason == "NEWER_SCHEMA"

    async def test_a_file_that_is_none_of_ours(self, tmp_path: Any) -> None:
        from noronha.rpc.errors import DataLoss

        path = tmp_path / "text.sqlite"
        path.write_bytes(b"this is not a database, but long enough to look like one" * 100)
        with pytest.raises(DataLoss):
            SqliteRecords(path)

    async def test_a_full_disk_refuses_and_recovers(self, tmp_path: Any) -> None:
        records = SqliteRecords(tmp_path / "full.sqlite")
        await write(records, put("projects/kept"))
        connection = records.commits.connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(ResourceExhausted) as caught:
            await write(records, put("projects/large", b"x" * 200_000))
        assert caught.value.reason == "NO_SPACE"
        record = await records.get("t", "projects/kept")
        assert record is not None
        assert await records.get("t", "projects/large") is None
        connection.execute("PRAGMA max_page_count = 1000000")
        position = await write(records, put("projects/large", b"x" * 200_000))
        assert position == record.version + 1
        await records.close()

    async def test_who_locks_the_file_is_waited_for(self, tmp_path: Any, records: Records) -> None:
        import sqlite3

        other = sqlite3.connect(tmp_path / "records.sqlite", isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.create_task(write(records, put("projects/a")))
            assert await records.get("t", "projects/a") is None, "readers go on"
            other.execute("COMMIT")
            await asyncio.wait_for(writing, 20)
        finally:
            other.close()
        assert await records.get("t", "projects/a") is not None

    def test_nothing_acknowledged_is_lost_to_kill_9(self, tmp_path: Any) -> None:
        path = tmp_path / "killed.sqlite"
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = []
        try:
            deadline = time.monotonic() + 60
            while len(told) < 300 and time.monotonic() < deadline:
                told.append(process.stdout.readline().strip())
            process.send_signal(signal.SIGKILL)
            told += process.stdout.read().split("\n")[:-1]
        finally:
            process.kill()
            process.wait(30)
            process.stdout.close()
        assert len(told) >= 300

        async def look() -> None:
            records = SqliteRecords(path)
            for name in told:
                for each in ("a", "b"):
                    assert await records.get("t", f"projects/{name}-{each}") is not None, name
            # A commit is there whole or not at all, also the last ones, of which nobody was told.
            found = await names(records, Scan("project", limit=1000))
            assert len({each[:-2] for each in found}) * 2 == len(found)
            assert await records.position() == len(found)
            await records.close()

        asyncio.run(look())


_WRITER = """
import asyncio, sys
from noronha.metadata.backend import Commit, Key, Put
from noronha.metadata.backends.sqlite import SqliteRecords

async def client(records, number):
    turn = 0
    while True:
        name = f"{number}-{turn}"
        await records.commit("t", Commit(tuple(
            Put(Key("project", f"projects/{name}-{each}"), b"x", "{}", 1, 1, expect=0) for each in "ab"
        )))
        print(name, flush=True)
        turn += 1

async def main():
    records = SqliteRecords(sys.argv[1])
    await asyncio.gather(*(client(records, each) for each in range(8)))

asyncio.run(main())
"""
