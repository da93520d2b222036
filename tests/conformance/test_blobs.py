"""The law of Store's two ports, bound to each backend: objects (bytes) and the index (what is known of them)."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from noronha.rpc.errors import Aborted, AlreadyExists, InvalidArgument, NoronhaError, NotFound
from noronha.store.backend import Index, Location, Objects, Session, StoredBlob
from noronha.store.backends.file import FileObjects
from noronha.store.backends.sqlite import SqliteIndex


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def content(objects: Objects, name: str) -> bytes:
    reader = objects.open(name)
    try:
        return reader.read(0, objects.size(name) or 0)
    finally:
        reader.close()


class ObjectsSuite:
    """Binding: a fixture ``reopen`` that returns the same storage, opened anew at each call."""

    @pytest.fixture
    def objects(self, reopen: Callable[[], Objects]) -> Objects:
        return reopen()

    def test_an_object_is_there_once_it_is_finished_and_not_before(self, objects: Objects) -> None:
        stage = objects.stage("upload/blob")
        stage.append(b"hello ")
        stage.append(b"world")
        assert objects.size("t/blobs/x") is None
        assert list(objects.list()) == []
        stage.finish("t/blobs/x")
        assert content(objects, "t/blobs/x") == b"hello world"
        assert [(each.name, each.size) for each in objects.list()] == [("t/blobs/x", 11)]
        assert list(objects.stages()) == []
        assert objects.staged("upload/blob") == 0

    def test_a_stage_goes_on_where_it_was_left_also_by_another_process(self, reopen: Callable[[], Objects]) -> None:
        first = reopen().stage("upload/blob")
        first.append(b"abc")
        first.append(b"def")
        first.close()
        objects = reopen()
        assert objects.staged("upload/blob") == 6
        second = objects.stage("upload/blob")
        assert second.size == 6
        assert b"".join(second.replay()) == b"abcdef"
        second.append(b"ghi")
        second.finish("t/blobs/y")
        assert content(objects, "t/blobs/y") == b"abcdefghi"

    def test_kept_never_says_more_than_was_taken(self, objects: Objects) -> None:
        stage = objects.stage("upload/blob")
        for _ in range(80):
            stage.append(b"x" * (1 << 20))
            assert 0 <= stage.kept <= stage.size
        stage.discard()
        assert objects.staged("upload/blob") == 0

    def test_a_stage_has_one_writer(self, objects: Objects) -> None:
        stage = objects.stage("upload/blob")
        with pytest.raises(Aborted) as raised:
            objects.stage("upload/blob")
        assert raised.value.reason == "BLOB_BUSY"
        stage.close()
        objects.stage("upload/blob").close()

    def test_of_many_racing_for_a_stage_one_gets_it_at_a_time(self, objects: Objects) -> None:
        taken = []

        def race(number: int) -> None:
            try:
                stage = objects.stage("upload/blob")
            except Aborted:
                return
            taken.append(number)
            stage.append(bytes([number]))
            stage.close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(race, range(64)))
        stage = objects.stage("upload/blob")
        assert b"".join(stage.replay()) == bytes(taken)
        stage.discard()

    def test_a_discarded_stage_begins_anew(self, objects: Objects) -> None:
        stage = objects.stage("upload/blob")
        stage.append(b"abc")
        stage.discard()
        stage.close()
        objects.discard("upload/blob")
        assert objects.stage("upload/blob").size == 0

    def test_stages_are_listed_until_they_end(self, objects: Objects) -> None:
        for name in ("one/a", "one/b", "two/a"):
            stage = objects.stage(name)
            stage.append(b"abc")
            stage.close()
        assert sorted(each.name for each in objects.stages()) == ["one/a", "one/b", "two/a"]
        objects.discard("one/a")
        assert sorted(each.name for each in objects.stages()) == ["one/b", "two/a"]

    def test_a_stage_handed_over_goes_on_under_its_new_key(self, reopen: Callable[[], Objects]) -> None:
        stage = reopen().stage("one/blob")
        stage.append(b"abc")
        stage.close()
        objects = reopen()
        assert objects.hand_over("one/blob", "two/blob")
        assert (objects.staged("one/blob"), objects.staged("two/blob")) == (0, 3)
        assert objects.stage("one/blob").size == 0
        second = objects.stage("two/blob")
        assert b"".join(second.replay()) == b"abc"
        second.append(b"def")
        second.finish("t/blobs/z")
        assert content(objects, "t/blobs/z") == b"abcdef"

    def test_a_stage_is_not_handed_over_under_a_writer_nor_onto_another(self, objects: Objects) -> None:
        stages = {key: objects.stage(key) for key in ("one/blob", "two/blob")}
        for key, stage in stages.items():
            stage.append(key.encode())
        for writing, key, to in (("one", "one/blob", "three/blob"), ("two", "one/blob", "two/blob")):
            with pytest.raises(Aborted) as raised:
                objects.hand_over(key, to)
            assert raised.value.reason == "BLOB_BUSY"
            stages[f"{writing}/blob"].close()
        assert not objects.hand_over("one/blob", "two/blob")
        assert not objects.hand_over("absent/blob", "three/blob")
        assert sorted((each.name, each.size) for each in objects.stages() if each.size) == [
            ("one/blob", 8), ("two/blob", 8)
        ]  # fmt: skip
        assert b"".join(objects.stage("two/blob").replay()) == b"two/blob"

    def test_a_stage_handed_over_beside_writers_and_others_loses_and_mixes_nothing(self, objects: Objects) -> None:
        def writes(key: str) -> bytes:
            try:
                stage = objects.stage(key)
            except Aborted:
                return b""
            stage.append(b"x")
            stage.close()
            return b"x"

        def hands(source: str, target: str) -> bool:
            try:
                return objects.hand_over(source, target)
            except Aborted:
                return False

        for number in range(20):
            source, targets = f"{number}/from", [f"{number}-{each}/to" for each in range(4)]
            stage = objects.stage(source)
            stage.append(b"abc")
            stage.close()
            with ThreadPoolExecutor(8) as pool:
                handing = [pool.submit(hands, source, each) for each in targets]
                written = b"".join(pool.map(writes, [*targets, source]))
            found = []
            for key in (source, *targets):
                stage = objects.stage(key)
                found.append(b"".join(stage.replay()))
                stage.discard()
            assert sorted(b"".join(found)) == sorted(b"abc" + written), found
            assert sum(each.startswith(b"abc") for each in found) == 1, found
            assert found[0].startswith(b"abc") != any(each.result() for each in handing), found

    def test_many_blobs_of_one_upload_begin_and_end_side_by_side(self, objects: Objects) -> None:
        def life(number: int) -> None:
            stage = objects.stage(f"upload/{number}")
            stage.append(b"%d" % number)
            if number % 3:
                stage.finish(f"t/blobs/{number}")
            else:
                stage.discard()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(life, range(90)))
        assert {each.name for each in objects.list()} == {f"t/blobs/{n}" for n in range(90) if n % 3}
        assert list(objects.stages()) == []

    def test_a_small_object_is_put_in_one_go(self, reopen: Callable[[], Objects]) -> None:
        objects = reopen()
        objects.put("t/packs/p", [b"one", b"", b"two"])
        objects.put("t/packs/empty", [])
        again = reopen()
        assert content(again, "t/packs/p") == b"onetwo"
        assert again.size("t/packs/empty") == 0

    def test_parts_are_read_and_the_end_cuts_them(self, objects: Objects) -> None:
        objects.put("t/blobs/x", [bytes(range(100))])
        reader = objects.open("t/blobs/x")
        assert reader.read(10, 5) == bytes(range(10, 15))
        assert reader.read(95, 50) == bytes(range(95, 100))
        assert reader.read(100, 1) == b""
        reader.close()
        reader.close()

    def test_what_is_not_there_is_not_found(self, objects: Objects) -> None:
        with pytest.raises(NotFound):
            objects.open("t/blobs/none").read(0, 1)
        assert objects.size("t/blobs/none") is None
        objects.delete("t/blobs/none")

    def test_a_deleted_object_is_gone_and_its_readers_are_not_lied_to(self, objects: Objects) -> None:
        objects.put("t/blobs/x", [b"abc"])
        reader = objects.open("t/blobs/x")
        objects.delete("t/blobs/x")
        assert objects.size("t/blobs/x") is None
        try:
            assert reader.read(0, 3) == b"abc"
        except NotFound:
            pass
        finally:
            reader.close()

    def test_lost_objects_are_at_most_those_that_are_not_there(self, objects: Objects) -> None:
        objects.put("t/blobs/x", [b"abc"])
        assert set(objects.lost(["t/blobs/x", "t/blobs/y"])) <= {"t/blobs/y"}

    def test_free_room_is_a_number_or_unknown(self, objects: Objects) -> None:
        free = objects.free_bytes()
        assert free is None or free > 0

    @pytest.mark.parametrize("name", ["../x", "t/../../x", "/etc/x", "t//x", "", "t/.", "t/x\0", "t/x\n", "t/ x"])
    def test_no_name_leads_out(self, objects: Objects, name: str) -> None:
        for attempt in (
            lambda: objects.put(name, [b"x"]),
            lambda: objects.stage(name),
            lambda: objects.open(name),
            lambda: objects.delete(name),
            lambda: objects.discard(name),
        ):
            with pytest.raises(NoronhaError):
                attempt()


class TestFileObjects(ObjectsSuite):
    """Files of a folder."""

    binds = FileObjects

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Iterator[Callable[[], Objects]]:
        opened: list[FileObjects] = []

        def reopen() -> Objects:
            opened.append(FileObjects(f"file:{tmp_path / 'store'}", tmp_path))
            return opened[-1]

        yield reopen
        for each in opened:
            each.close()


NOW = 1_000_000.0


def session(**changes: object) -> Session:
    fields: dict[str, object] = {
        "upload": uuid.uuid4().hex, "tenant": "default", "identity": "user:ana", "storage_class": 1, "store": "file",
        "expire_time": NOW + 100,
    }  # fmt: skip
    return Session(**{**fields, **changes})  # type: ignore[arg-type]


def stored(data: bytes, name: str | None = None, offset: int = 0) -> StoredBlob:
    return StoredBlob(
        digest_of(data), Location("file", name or f"default/blobs/{uuid.uuid4().hex}", offset, len(data)), b"\1\2\3\4"
    )


class IndexSuite:
    """Binding: a fixture ``reopen`` that returns the same index, opened anew at each call."""

    @pytest.fixture
    def index(self, reopen: Callable[[], Index]) -> Index:
        return reopen()

    @staticmethod
    def opened(index: Index, *data: bytes, proven: bool = False, **changes: object) -> Session:
        entries = [(digest_of(each), len(each)) for each in data]
        return index.open_upload(session(**changes), entries, proven=proven, now=NOW)

    def brought(self, index: Index, *data: bytes, proof: bool = False, **changes: object) -> Session:
        upload = self.opened(index, *data, **changes)
        index.complete(upload.upload, [stored(each) for each in data], proof=proof)
        return upload

    def test_what_was_answered_is_there_after_a_restart(self, reopen: Callable[[], Index]) -> None:
        upload = self.brought(reopen(), b"abc")
        index = reopen()
        assert index.find_upload(upload.upload) == upload
        assert index.entries(upload.upload) == [(digest_of(b"abc"), 3, True)]
        found = index.find("default", digest_of(b"abc"))
        assert found is not None
        assert (found.location.length, found.pieces, found.damaged) == (3, b"\1\2\3\4", False)

    def test_entries_keep_their_order_and_are_complete_where_the_blob_is_there(self, index: Index) -> None:
        self.brought(index, b"b")
        upload = self.opened(index, b"c", b"b", b"a")
        assert [each.digest for each in index.entries(upload.upload)] == [
            digest_of(each) for each in (b"c", b"b", b"a")
        ]
        assert [each.complete for each in index.entries(upload.upload)] == [False, True, False]

    def test_a_proven_upload_is_offered_only_what_its_identity_wrote(self, index: Index) -> None:
        self.brought(index, b"theirs", identity="task:b", proof=True)
        self.brought(index, b"mine", identity="task:a", proof=True)
        upload = self.opened(index, b"theirs", b"mine", identity="task:a", proven=True)
        assert [each.complete for each in index.entries(upload.upload)] == [False, True]
        index.complete(upload.upload, [stored(b"theirs")], proof=True)
        assert all(each.complete for each in index.entries(upload.upload))

    def test_tenants_do_not_see_each_other(self, index: Index) -> None:
        self.brought(index, b"abc", tenant="one")
        assert index.find("two", digest_of(b"abc")) is None
        assert index.sizes("two", [digest_of(b"abc")]) == []
        upload = self.opened(index, b"abc", tenant="two")
        assert not index.entries(upload.upload)[0].complete

    def test_a_size_that_is_not_the_blobs_is_refused_and_leaves_nothing(self, index: Index) -> None:
        self.brought(index, b"abc")
        wrong = session()
        with pytest.raises(InvalidArgument) as raised:
            index.open_upload(wrong, [(digest_of(b"abc"), 4)], proven=False, now=NOW)
        assert raised.value.reason == "WRONG_SIZE"
        assert index.find_upload(wrong.upload) is None

    def test_a_request_id_answers_the_first_upload_and_refuses_another_body(self, index: Index) -> None:
        first = self.opened(index, b"abc", request_id="r1", fingerprint="f1")
        assert self.opened(index, b"abc", request_id="r1", fingerprint="f1") == first
        with pytest.raises(AlreadyExists) as raised:
            self.opened(index, b"other", request_id="r1", fingerprint="f2")
        assert raised.value.reason == "REQUEST_ID_REUSED"
        other = self.opened(index, b"abc", request_id="r1", fingerprint="f2", identity="user:bob")
        assert other.upload != first.upload

    def test_the_request_id_of_an_expired_upload_is_free(self, index: Index) -> None:
        first = self.opened(index, b"abc", request_id="r1", fingerprint="f1", expire_time=NOW - 1)
        again = self.opened(index, b"abc", request_id="r1", fingerprint="f1")
        assert again.upload != first.upload

    def test_of_many_racing_with_one_request_id_all_get_the_same_upload(self, index: Index) -> None:
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda _: self.opened(index, b"abc", request_id="r", fingerprint="f"), range(16)))
        assert len({each.upload for each in done}) == 1

    def test_the_second_copy_of_a_blob_is_not_needed(self, index: Index) -> None:
        first, second = self.opened(index, b"abc"), self.opened(index, b"abc")
        one, two = stored(b"abc"), stored(b"abc")
        assert index.complete(first.upload, [one], proof=False) == []
        assert index.complete(second.upload, [two], proof=False) == [two.location]
        assert index.entries(second.upload)[0].complete
        found = index.find("default", one.digest)
        assert found is not None and found.location == one.location

    def test_nothing_is_kept_for_an_upload_that_is_gone(self, index: Index) -> None:
        upload = self.opened(index, b"abc")
        assert index.abort(upload.upload)
        blob = stored(b"abc")
        assert index.complete(upload.upload, [blob], proof=False) == [blob.location]
        assert index.find("default", blob.digest) is None

    def test_a_damaged_blob_is_missing_until_it_comes_again(self, index: Index) -> None:
        upload = self.brought(index, b"abc")
        bad = index.find("default", digest_of(b"abc"))
        assert bad is not None
        index.mark_damaged("default", bad)
        damaged = index.find("default", bad.digest)
        assert damaged is not None and damaged.damaged
        assert index.sizes("default", [bad.digest]) == []
        assert not index.entries(upload.upload)[0].complete
        again = self.opened(index, b"abc")
        assert not index.entries(again.upload)[0].complete
        healed = stored(b"abc")
        assert index.complete(again.upload, [healed], proof=False) == [bad.location]
        index.mark_damaged("default", bad)  # said of the place it no longer has
        found = index.find("default", bad.digest)
        assert found is not None and not found.damaged and found.location == healed.location
        assert index.entries(upload.upload)[0].complete

    def test_expiry_moves_forward_only(self, index: Index) -> None:
        upload = self.opened(index, b"abc")
        index.extend(upload.upload, NOW + 500)
        index.extend(upload.upload, NOW + 50)
        found = index.find_upload(upload.upload)
        assert found is not None and found.expire_time == NOW + 500 and not found.sealed

    def test_a_sealed_upload_is_not_aborted(self, index: Index) -> None:
        upload = self.brought(index, b"abc")
        index.extend(upload.upload, NOW + 500, seal=True)
        assert not index.abort(upload.upload)
        assert index.find_upload(upload.upload) is not None

    def test_expired_uploads_are_removed_and_told(self, index: Index) -> None:
        old = self.opened(index, b"abc", expire_time=NOW - 1)
        young = self.opened(index, b"abc")
        assert index.count_expired(NOW) == 1
        assert index.expire(NOW) == [old.upload]
        assert index.find_upload(old.upload) is None
        assert index.entries(old.upload) == []
        assert index.find_upload(young.upload) is not None

    def test_held_blobs_are_left_and_others_are_forgotten(self, index: Index) -> None:
        upload = self.brought(index, b"held", b"free")
        index.abort(upload.upload)
        holder = self.opened(index, b"held")
        place = index.find("default", digest_of(b"free"))
        deletion = index.delete_unheld(
            "default", [digest_of(b"held"), digest_of(b"free"), digest_of(b"absent")], as_of=NOW
        )
        assert place is not None and deletion.deleted == [place.location]
        assert deletion.held == [digest_of(b"held")]
        assert index.find("default", digest_of(b"free")) is None
        assert index.entries(holder.upload)[0].complete

    def test_an_upload_of_another_tenant_holds_nothing(self, index: Index) -> None:
        upload = self.brought(index, b"abc", tenant="one")
        index.abort(upload.upload)
        self.opened(index, b"abc", tenant="two")
        assert len(index.delete_unheld("one", [digest_of(b"abc")], as_of=NOW).deleted) == 1

    def test_an_expired_upload_holds_as_long_as_the_collection_looks_back(self, index: Index) -> None:
        self.brought(index, b"abc", expire_time=NOW)
        assert index.delete_unheld("default", [digest_of(b"abc")], as_of=NOW - 1).held == [digest_of(b"abc")]
        assert index.delete_unheld("default", [digest_of(b"abc")], as_of=NOW).held == []

    def test_what_was_proven_is_forgotten_with_the_blob(self, index: Index) -> None:
        upload = self.brought(index, b"abc", identity="task:a", proof=True)
        index.abort(upload.upload)
        index.delete_unheld("default", [digest_of(b"abc")], as_of=NOW)
        self.brought(index, b"abc", identity="user:bob")
        again = self.opened(index, b"abc", identity="task:a", proven=True)
        assert not index.entries(again.upload)[0].complete

    def test_an_opening_never_loses_a_blob_to_a_deletion_beside_it(self, index: Index) -> None:
        for _ in range(30):
            data = os.urandom(8)
            index.abort(self.brought(index, data).upload)
            start = threading.Barrier(2)

            def opening(data: bytes = data, start: threading.Barrier = start) -> Session:
                start.wait()
                return self.opened(index, data)

            def deleting(data: bytes = data, start: threading.Barrier = start) -> object:
                start.wait()
                return index.delete_unheld("default", [digest_of(data)], as_of=NOW)

            with ThreadPoolExecutor(2) as pool:
                upload, deletion = pool.submit(opening), pool.submit(deleting)
                (entry,) = index.entries(upload.result().upload)
                assert entry.complete == bool(deletion.result().held)  # type: ignore[attr-defined]
                assert entry.complete == (index.find("default", digest_of(data)) is not None)

    def test_the_scan_is_in_order_of_digest_and_knows_what_is_held(self, index: Index) -> None:
        data = [b"%d" % number for number in range(2500)]
        upload = self.brought(index, *data, expire_time=time.time() + 100)
        index.abort(upload.upload)
        self.opened(index, *data[:100], expire_time=time.time() + 100)
        self.brought(index, b"theirs", tenant="another")
        assert index.tenants() == ["another", "default"]
        scanned = list(index.scan("default"))
        assert [each[0] for each in scanned] == sorted(digest_of(each) for each in data)
        assert {each[0] for each in scanned if each[2]} == {digest_of(each) for each in data[:100]}

    def test_blobs_of_a_pack_are_listed_and_moved(self, index: Index) -> None:
        upload = self.opened(index, b"one", b"two")
        blobs = [stored(b"one", "default/packs/p", 0), stored(b"two", "default/packs/p", 3)]
        index.complete(upload.upload, blobs, proof=False)
        assert index.objects_of(upload.upload) == {"file": ["default/packs/p"]}
        assert {blob.digest for _, blob in index.contents("file", "default/packs/p")} == {each.digest for each in blobs}
        assert index.move("default", blobs[1], Location("file", "default/packs/q", 0, 3))
        assert not index.move("default", blobs[1], Location("file", "default/packs/r", 0, 3))
        assert [blob.digest for _, blob in index.contents("file", "default/packs/p")] == [blobs[0].digest]
        found = index.find("default", blobs[1].digest)
        assert found is not None and found.location == Location("file", "default/packs/q", 0, 3)

    def test_one_collection_at_a_time(self, reopen: Callable[[], Index]) -> None:
        with reopen().collecting(), pytest.raises(Aborted) as raised, reopen().collecting():
            pass
        assert raised.value.reason == "COLLECTING"
        with reopen().collecting():
            pass


class TestSqliteIndex(IndexSuite):
    """One SQLite file."""

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Iterator[Callable[[], Index]]:
        opened: list[SqliteIndex] = []

        def reopen() -> Index:
            opened.append(SqliteIndex(tmp_path / "index.db"))
            return opened[-1]

        yield reopen
        for each in opened:
            each.close()
