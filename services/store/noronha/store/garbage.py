"""Garbage: blobs that no record and no upload refers to, and what crashes left behind.

Why a publishing beside a collection loses nothing: an upload holds its blobs before it learns that they are there, it
is sealed before its record is committed, and a seal outlasts the commit. So a blob that the records did not name when
they were listed is either held by an upload that was in force when the collection began, or was opened later; both
are looked up again, in one step with the forgetting. Uploads that expire during a collection count as in force until
it ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator

from noronha.rpc.errors import Aborted
from noronha.store import packs
from noronha.store.backend import Location, StoredBlob
from noronha.store.stores import Stores, is_pack, pack_object, upload_of
from noronha.store.writer import unused
from noronha.v1 import store_pb2

CLOCK_MARGIN = 300.0
"""Seconds that an upload is respected past its expiry, in case a clock was set."""

ORPHAN_AGE = 3600.0
"""Seconds after which an object that the index does not know is one that a crash left behind."""

_BATCH = 1000

log = logging.getLogger("noronha")


def expire(stores: Stores) -> int:
    """Removes expired uploads and the stages nobody can go on with; returns how many uploads."""
    with stores.index.collecting():
        return _expire(stores, time.time() - CLOCK_MARGIN)


def _expire(stores: Stores, as_of: float) -> int:
    gone = stores.index.expire(as_of)
    for objects in stores.objects.values():
        alive: dict[str, bool] = {}
        for stage in list(objects.stages()):
            upload = upload_of(stage.name)
            if upload not in alive:
                alive[upload] = stores.index.find_upload(upload) is not None
            if not alive[upload] and stage.age > CLOCK_MARGIN:
                objects.discard(stage.name)
    return len(gone)


class Collection:
    """One collection of garbage. Methods block.

    Use: ``begin``; then, for each tenant, list what its records refer to and give it to ``sweep`` in order of digest;
    then ``end``. Or ``abandon`` at any point.
    """

    def __init__(self, stores: Stores, *, dry_run: bool) -> None:
        self._stores = stores
        self._index = stores.index
        self._dry_run = dry_run
        self._as_of = time.time() - CLOCK_MARGIN
        self._lock = self._index.collecting()
        self._is_given_up = False
        self.result = store_pb2.CollectGarbageResponse()

    def begin(self) -> None:
        """Keeps other collections out and removes expired uploads. Raises Aborted ``COLLECTING``, ``ADOPTING``."""
        if not self._index.is_settled():
            raise Aborted("the index is being made anew from the stores; ask again later", reason="ADOPTING")
        self._lock.__enter__()
        try:
            if self._dry_run:
                self.result.expired_uploads = self._index.count_expired(self._as_of)
            else:
                self.result.expired_uploads = _expire(self._stores, self._as_of)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def sweep(self, tenant: str, referenced: Iterable[str]) -> None:
        """Deletes a tenant's blobs that are neither in ``referenced``, all it refers to in order, nor held."""
        unreferenced: dict[str, int] = {}
        for digest, size in self._unreferenced(tenant, referenced):
            if self._is_given_up:
                return
            unreferenced[digest] = size
            if len(unreferenced) >= _BATCH:
                self._delete(tenant, unreferenced)
                unreferenced = {}
        self._delete(tenant, unreferenced)

    def _unreferenced(self, tenant: str, referenced: Iterable[str]) -> Iterator[tuple[str, int]]:
        marks = iter(referenced)
        mark = next(marks, None)
        for digest, size, held in self._index.scan(tenant):
            while mark is not None and mark < digest:
                mark = next(marks, None)
            if held or mark == digest:
                self.result.kept_blobs += 1
            else:
                yield digest, size

    def _delete(self, tenant: str, sizes: dict[str, int]) -> None:
        held: list[str] = []
        if sizes and not self._dry_run:
            deletion = self._index.delete_unheld(tenant, sizes, as_of=self._as_of)
            held = deletion.held
            reclaim(self._stores, deletion.deleted)
        self.result.kept_blobs += len(held)
        self.result.deleted_blobs += len(sizes) - len(held)
        self.result.deleted_bytes += sum(sizes.values()) - sum(sizes[digest] for digest in held)

    def end(self) -> None:
        """Deletes what crashes left behind, and lets others collect."""
        try:
            if not self._dry_run:
                for name, objects in self._stores.objects.items():
                    for found in list(objects.list()):
                        if found.age > ORPHAN_AGE and not self._index.contents(name, found.name):
                            log.info("deleting %s of %s, which nothing refers to", found.name, name)
                            objects.delete(found.name)
        finally:
            self.abandon()

    def give_up(self) -> None:
        """Has a sweep that is at work in another thread end soon, with what it has deleted so far."""
        self._is_given_up = True

    def abandon(self) -> None:
        """Lets others collect."""
        self._lock.__exit__(None, None, None)


def reclaim(stores: Stores, locations: list[Location]) -> None:
    """Gives back the room of forgotten blobs: deletes their objects, and repacks what mostly holds forgotten ones."""
    unused(stores, locations)
    for store, name in {(each.store, each.object) for each in locations if is_pack(each.object)}:
        _repack(stores, store, name)


def _repack(stores: Stores, store: str, name: str) -> None:
    objects = stores.of(store)
    size = objects.size(name)
    rest = [(tenant, blob) for tenant, blob in stores.index.contents(store, name) if not blob.damaged]
    if size is None or not rest or 2 * sum(blob.location.length for _, blob in rest) > size:
        return
    reader = objects.open(name)
    try:
        kept = [(tenant, blob, reader.read(blob.location.offset, blob.location.length)) for tenant, blob in rest]
    finally:
        reader.close()
    whole = [(tenant, blob, data) for tenant, blob, data in kept if _is_right(blob, data)]
    if len(whole) < len(kept):
        return  # readers find the damage and say so; what cannot be copied right is not copied
    tenant = whole[0][0]
    fresh = pack_object(tenant)
    parts, places = packs.layout(store, fresh, [(blob.digest, data) for _, blob, data in whole])
    objects.put(fresh, parts)
    for (tenant, blob, _), place in zip(whole, places, strict=True):
        stores.index.move(tenant, blob, place)
    unused(stores, [Location(store, name, 0, 0), Location(store, fresh, 0, 0)])


def _is_right(blob: StoredBlob, data: bytes) -> bool:
    import hashlib

    return blob.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
