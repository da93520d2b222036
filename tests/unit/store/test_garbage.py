"""What is collected, what is spared, and that a publishing beside a collection loses nothing."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from noronha.chassis.principals import Kind, Principal
from noronha.rpc.errors import Aborted, NoronhaError
from noronha.store import garbage
from noronha.store.backends.file import FileObjects
from noronha.store.backends.sqlite import SqliteIndex
from noronha.store.garbage import CLOCK_MARGIN, ORPHAN_AGE, Collection
from noronha.store.reader import Reader
from noronha.store.stores import Stores
from noronha.store.uploads import Uploads
from noronha.store.writer import Writer
from noronha.v1 import store_pb2

from .rig import CHUNK, digest_of, messages

ANA = Principal(Kind.USER, "ana")


class Shop:
    """Store's rules on a folder, without a wire."""

    def __init__(self, folder: Path) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.folder = folder
        self.objects = FileObjects("file:", folder)
        self.index = SqliteIndex(folder / "index.db")
        self.stores = Stores(self.index, {"file": self.objects}, "file", "file")
        self.index.settle()
        self.uploads = Uploads(self.stores)
        self.flushers = ThreadPoolExecutor(2)

    def close(self) -> None:
        self.flushers.shutdown()
        self.stores.close()

    def open(self, *data: bytes) -> store_pb2.Upload:
        request = store_pb2.OpenUploadRequest()
        for each in data:
            request.entries.add(digest=digest_of(each), size_bytes=len(each))
        answer, succession = self.uploads.open(ANA, request)
        if succession is not None:
            assert not succession.take_over()
        return self.uploads.get(ANA, answer.upload)

    def put(self, *data: bytes) -> str:
        upload = self.open(*data)
        missing = {each.digest for each in upload.missing}
        writer = Writer(self.stores, self.uploads.session(ANA, upload.upload), proof=False, flushers=self.flushers)
        writer.take(list(messages(upload.upload, *(each for each in data if digest_of(each) in missing))))
        writer.settle()
        writer.close()
        return upload.upload

    def give_up(self, upload: str) -> None:
        self.uploads.abort(ANA, upload)

    def read(self, digest: str) -> bytes:
        reader = Reader(self.stores, ANA.tenant, digest, 0, 0)
        got = b""
        try:
            while answers := reader.next():
                got += b"".join(each.data for each in answers)
        finally:
            reader.close()
        return got

    def has(self, data: bytes) -> bool:
        try:
            return self.read(digest_of(data)) == data
        except NoronhaError:
            return False

    def collect(self, referenced: Sequence[str] = (), *, dry_run: bool = False) -> store_pb2.CollectGarbageResponse:
        collection = Collection(self.stores, dry_run=dry_run)
        collection.begin()
        collection.sweep(ANA.tenant, sorted(referenced))
        collection.end()
        return collection.result


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.close()


def test_what_nothing_refers_to_is_deleted_and_the_rest_stays(shop: Shop) -> None:
    referenced, held, garbage_, big = os.urandom(2 * CHUNK), os.urandom(100), os.urandom(200), os.urandom(3 * CHUNK)
    for each in (referenced, garbage_, big):
        shop.give_up(shop.put(each))
    shop.put(held)
    told = shop.collect([digest_of(referenced)], dry_run=True)
    assert (told.deleted_blobs, told.deleted_bytes, told.kept_blobs) == (2, 200 + 3 * CHUNK, 2)
    assert all(map(shop.has, (referenced, held, garbage_, big)))
    assert shop.collect([digest_of(referenced)]) == told
    assert shop.has(referenced) and shop.has(held)
    assert not shop.has(garbage_) and not shop.has(big)
    assert shop.collect([digest_of(referenced)]).deleted_blobs == 0
    assert len(list(shop.objects.list())) == 2


def test_a_collection_that_is_given_up_deletes_no_more_and_lets_others_in(shop: Shop) -> None:
    data = [os.urandom(100) for _ in range(3)]
    for each in data:
        shop.give_up(shop.put(each))
    collection = Collection(shop.stores, dry_run=False)
    collection.begin()

    def marks() -> Iterator[str]:
        collection.give_up()
        yield from ()

    collection.sweep(ANA.tenant, marks())
    collection.abandon()
    assert all(map(shop.has, data))
    assert shop.collect().deleted_blobs == 3


def test_an_upload_opened_after_the_records_were_listed_holds_its_blobs(shop: Shop) -> None:
    data = os.urandom(1000)
    shop.give_up(shop.put(data))
    collection = Collection(shop.stores, dry_run=False)
    collection.begin()

    def marks() -> Iterator[str]:
        # The list is complete and does not name the blob; now somebody offers it and is told that it is there.
        assert not shop.open(data).missing
        yield from ()

    collection.sweep(ANA.tenant, marks())
    collection.end()
    assert shop.has(data)


def test_a_publishing_that_commits_during_the_collection_keeps_its_blobs(shop: Shop) -> None:
    data = os.urandom(1000)
    upload = shop.put(data)
    collection = Collection(shop.stores, dry_run=False)
    collection.begin()

    def marks() -> Iterator[str]:
        # Listed before the commit. The publisher then seals, commits, and gives its upload up.
        shop.uploads.seal(upload, ANA.identity, ANA.tenant, 60)
        shop.give_up(upload)
        yield from ()

    collection.sweep(ANA.tenant, marks())
    collection.end()
    assert shop.has(data)


def test_an_upload_that_expires_during_the_collection_holds_to_its_end(shop: Shop) -> None:
    data = os.urandom(1000)
    upload = shop.put(data)
    _expire_at(shop, upload, time.time())
    assert shop.collect().deleted_blobs == 0
    _expire_at(shop, upload, time.time() - CLOCK_MARGIN - 1)
    result = shop.collect()
    assert (result.expired_uploads, result.deleted_blobs) == (1, 1)


def _expire_at(shop: Shop, upload: str, when: float) -> None:
    with shop.index._step() as step:
        step.execute("UPDATE uploads SET expire_time = ? WHERE upload = ?", (when, upload))


def test_an_expired_upload_is_gone_with_what_it_had_received(shop: Shop) -> None:
    data = os.urandom(3 * CHUNK)
    upload = shop.open(data).upload
    writer = Writer(shop.stores, shop.uploads.session(ANA, upload), proof=False, flushers=shop.flushers)
    writer.take(list(messages(upload, data))[:2])
    writer.close()
    _expire_at(shop, upload, time.time() - 1)
    with pytest.raises(NoronhaError):
        shop.uploads.get(ANA, upload)
    _expire_at(shop, upload, time.time() - CLOCK_MARGIN - 1)
    for stage in (shop.folder / "staging").rglob("*"):
        os.utime(stage, (0, 0))
    assert garbage.expire(shop.stores) == 1
    assert list(shop.objects.stages()) == []


def test_what_a_successor_took_over_lives_as_long_as_its_upload(shop: Shop) -> None:
    data = os.urandom(3 * CHUNK)
    first = shop.open(data).upload
    writer = Writer(shop.stores, shop.uploads.session(ANA, first), proof=False, flushers=shop.flushers)
    writer.take(list(messages(first, data))[:2])
    writer.close()
    second = shop.open(data)
    assert [each.committed_offset for each in second.missing] == [2 * CHUNK]
    for upload, left in ((first, 1), (second.upload, 0)):
        _expire_at(shop, upload, time.time() - CLOCK_MARGIN - 1)
        for stage in (shop.folder / "staging").rglob("*"):
            os.utime(stage, (0, 0))
        assert garbage.expire(shop.stores) == 1
        assert len(list(shop.objects.stages())) == left
    assert [each.committed_offset for each in shop.open(data).missing] == [0]


def test_only_one_collection_runs(shop: Shop) -> None:
    first = Collection(shop.stores, dry_run=False)
    first.begin()
    with pytest.raises(Aborted):
        Collection(shop.stores, dry_run=False).begin()
    first.abandon()
    shop.collect()


def test_a_list_that_is_cut_short_deletes_nothing_it_did_not_reach(shop: Shop) -> None:
    data = [os.urandom(100) for _ in range(50)]
    shop.give_up(shop.put(*data))
    digests = sorted(digest_of(each) for each in data)

    def cut() -> Iterator[str]:
        yield from digests[:10]
        raise ConnectionError

    collection = Collection(shop.stores, dry_run=False)
    collection.begin()
    with pytest.raises(ConnectionError):
        collection.sweep(ANA.tenant, cut())
    collection.abandon()
    assert all(map(shop.has, data))


def test_the_room_of_packs_comes_back(shop: Shop) -> None:
    data = [os.urandom(10_000) for _ in range(100)]
    shop.give_up(shop.put(*data))
    (pack,) = shop.objects.list()
    keep = data[::10]
    shop.collect([digest_of(each) for each in keep])
    assert all(map(shop.has, keep))
    assert sum(map(shop.has, data)) == len(keep)
    (smaller,) = shop.objects.list()
    assert smaller.name != pack.name and smaller.size < pack.size / 5
    shop.collect()
    assert list(shop.objects.list()) == []


def test_a_reader_is_not_disturbed_by_a_pack_that_moves(shop: Shop) -> None:
    data = [os.urandom(10_000) for _ in range(100)]
    shop.give_up(shop.put(*data))
    reader = Reader(shop.stores, ANA.tenant, digest_of(data[0]), 0, 0)
    shop.collect([digest_of(data[0])])
    assert b"".join(each.data for each in reader.next()) == data[0]
    reader.close()


def test_what_a_crash_left_behind_is_found_when_it_is_old(shop: Shop) -> None:
    orphan = shop.folder / "objects" / "default" / "blobs" / "ab" / "ab-1234"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x")
    shop.collect()
    assert orphan.exists()
    os.utime(orphan, (time.time() - ORPHAN_AGE - 1,) * 2)
    shop.collect(dry_run=True)
    assert orphan.exists()
    shop.collect()
    assert not orphan.exists()


def test_any_order_of_steps_keeps_what_is_published(tmp_path: Path) -> None:
    """Uploads, publishings, deletions, collections, damage and restarts in any order, against a plain account of them."""
    seed = int(os.environ.get("NHA_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    content = [dice.randbytes(dice.choice([10, 5_000, CHUNK, CHUNK + 9])) for _ in range(12)]
    shop = Shop(tmp_path)
    open_uploads: dict[str, list[bytes]] = {}
    published: list[list[bytes]] = []
    try:
        for _ in range(150):
            step = dice.choice(
                ["put", "put", "publish", "publish", "give up", "unpublish", "collect", "damage", "restart"]
            )
            if step == "put":
                data = dice.sample(content, dice.randrange(1, 5))
                open_uploads[shop.put(*data)] = data
            elif step == "publish" and open_uploads:
                upload, data = dice.choice(list(open_uploads.items()))
                shop.uploads.seal(upload, ANA.identity, ANA.tenant, 60)
                published.append(data)
                _expire_at(shop, upload, 0)  # its hold runs out: from now on only the record keeps the bytes
                del open_uploads[upload]
            elif step == "give up" and open_uploads:
                upload = dice.choice(list(open_uploads))
                shop.give_up(upload)
                del open_uploads[upload]
            elif step == "unpublish" and published:
                published.pop(dice.randrange(len(published)))
            elif step == "collect":
                shop.collect({digest_of(each) for data in published for each in data})
            elif step == "damage":
                _damage_and_heal(shop, dice, content)
            elif step == "restart":
                shop.close()
                shop = Shop(tmp_path)
            wanted = {digest_of(each): each for data in [*published, *open_uploads.values()] for each in data}
            for digest in dice.sample(sorted(wanted), min(4, len(wanted))):
                assert shop.read(digest) == wanted[digest], step
        shop.collect()
        left = {digest_of(each) for data in open_uploads.values() for each in data}
        assert {digest for digest, *_ in shop.index.scan(ANA.tenant)} == left
    finally:
        shop.close()


def _damage_and_heal(shop: Shop, dice: random.Random, content: list[bytes]) -> None:
    data = dice.choice(content)
    blob = shop.index.find(ANA.tenant, digest_of(data))
    if blob is None or blob.damaged:
        return
    file = shop.folder / "objects" / blob.location.object
    file.chmod(0o600)
    with open(file, "r+b") as opened:
        opened.seek(blob.location.offset)
        opened.write(bytes(each ^ 255 for each in data[:5]))
    assert not shop.has(data)
    upload = shop.put(data)
    assert shop.has(data)
    shop.give_up(upload)
