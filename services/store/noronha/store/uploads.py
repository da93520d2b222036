"""Uploads: what a client offers, what of it has to travel, and how long it is held."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from noronha.chassis import request_ids
from noronha.chassis.principals import Kind, Principal
from noronha.rpc.chunks import CHUNK_BYTES, MAX_FILES, check_digest
from noronha.rpc.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from noronha.store.backend import Entry, Location, Objects, Session, StoredBlob
from noronha.store.stores import Stores, blob_of, stage_key, upload_of
from noronha.v1 import file_pb2, store_pb2

LIFETIME = 24 * 3600.0
"""Seconds that an upload lives after its last chunk."""

DEFAULT_HOLD = 3600.0
"""Seconds that a sealed upload's blobs are held unless the publishing says otherwise."""

MAX_LIGHTWEIGHT_BYTES = 10 << 20
"""Largest blob of the lightweight class."""

HEADROOM_BYTES = 16 << 20
"""Room that an upload leaves for the index and for records."""

_LETTING_GO = 5.0
"""Seconds in which the stream of a client that was killed is over: what it is flushing is on disk by then."""

_LAST_BYTES = 16 << 20
"""Bytes that such a stream may still take, those on their way included. One that takes more has a client."""

EMPTY_DIGEST = f"sha256:{hashlib.sha256().hexdigest()}"


class Opening(NamedTuple):
    """An upload as it was opened."""

    answer: store_pb2.Upload
    succession: Succession | None
    """What it is to take over before it is answered, as it stands then."""


class Succession:
    """What an upload takes over: blobs that other uploads of the same principal have begun."""

    def __init__(self, objects: Objects, upload: str, begun: Mapping[str, tuple[int, str]]) -> None:
        self._objects = objects
        self._upload = upload
        self._begun = dict(begun)
        self._deadline = time.monotonic() + _LETTING_GO

    def take_over(self) -> bool:
        """Takes over what nobody writes, and says whether a writer may be about to let go of the rest. Blocks."""
        for digest, (size, key) in list(self._begun.items()):
            try:
                self._objects.hand_over(key, stage_key(self._upload, digest))
            except Aborted:
                if time.monotonic() < self._deadline and self._objects.staged(key) - size <= _LAST_BYTES:
                    continue
            del self._begun[digest]
        return bool(self._begun)


class Uploads:
    """The uploads of all tenants. Methods block."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._index = stores.index

    def open(self, principal: Principal, request: store_pb2.OpenUploadRequest) -> Opening:
        """Opens an upload, or answers the one that the same request id opened.

        Raises InvalidArgument ``BAD_DIGEST``, ``TOO_MANY_FILES``, ``BAD_SIZE``, ``DUPLICATE_DIGEST``, ``WRONG_SIZE``;
        FailedPrecondition ``NOT_LIGHTWEIGHT``; AlreadyExists ``REQUEST_ID_REUSED``; ResourceExhausted ``NO_SPACE``.
        """
        lightweight = request.storage_class == file_pb2.STORAGE_CLASS_LIGHTWEIGHT
        _check_entries(request.entries, lightweight)
        session = Session(
            upload=secrets.token_hex(16),
            tenant=principal.tenant,
            identity=principal.identity,
            storage_class=request.storage_class or file_pb2.STORAGE_CLASS_STANDARD,
            store=self._stores.lightweight if lightweight else self._stores.standard,
            expire_time=time.time() + LIFETIME,
            request_id=request_ids.check(request.request_id),
            fingerprint=request_ids.fingerprint(request, principal).hex(),
        )
        entries = [(each.digest, each.size_bytes) for each in request.entries]
        proven = principal.kind is Kind.TASK
        opened = self._index.open_upload(session, entries, proven=proven, now=time.time())
        self._look_after(opened)
        if (EMPTY_DIGEST, 0) in entries:
            nothing = StoredBlob(EMPTY_DIGEST, Location(opened.store, "", 0, 0), b"")
            self._index.complete(opened.upload, [nothing], proof=proven)
        answer = self._answer(opened)
        if opened.upload != session.upload or not answer.missing:
            return Opening(answer, None)
        begun = self._begun_elsewhere(opened, answer)
        try:
            self._check_room(opened, answer, dict(entries), begun)
        except ResourceExhausted:
            self._index.abort(opened.upload)
            raise
        return Opening(answer, Succession(self._stores.of(opened.store), opened.upload, begun) if begun else None)

    def _begun_elsewhere(self, session: Session, answer: store_pb2.Upload) -> dict[str, tuple[int, str]]:
        """Returns, of missing blobs by digest, how many bytes another upload of the same principal took at most, and
        the key of the stage they are in.

        That upload's client was most likely killed, and its user has repeated the command. If it is alive after all,
        between two streams, it finds its blob at the beginning and sends it again; while it writes, it keeps it.
        """
        wanted = {each.digest for each in answer.missing}
        found: dict[str, tuple[int, str]] = {}
        for stage in self._stores.of(session.store).stages():
            digest = blob_of(stage.name)
            if digest not in wanted or stage.size <= found.get(digest, (0, ""))[0]:
                continue
            other = self._index.find_upload(upload_of(stage.name))
            if other is not None and (other.tenant, other.identity) == (session.tenant, session.identity):
                found[digest] = (stage.size, stage.name)
        return found

    def _look_after(self, session: Session) -> None:
        """Notes blobs whose objects somebody took away, so that they travel again instead of being promised."""
        for store, names in self._index.objects_of(session.upload).items():
            for name in self._stores.of(store).lost(names):
                for tenant, blob in self._index.contents(store, name):
                    self._index.mark_damaged(tenant, blob)

    def _check_room(
        self, session: Session, answer: store_pb2.Upload, sizes: dict[str, int], begun: dict[str, tuple[int, str]]
    ) -> None:
        """Raises ResourceExhausted ``NO_SPACE`` when what has to travel does not fit."""
        needed = sum(max(0, sizes[each.digest] - begun.get(each.digest, (0, ""))[0]) for each in answer.missing)
        free = self._stores.of(session.store).free_bytes() if needed else None
        if free is not None and needed + HEADROOM_BYTES > free:
            raise ResourceExhausted(
                f"the upload needs {needed} bytes and the store has {max(0, free - HEADROOM_BYTES)} left; free some",
                reason="NO_SPACE", needed_bytes=needed, free_bytes=free,
            )  # fmt: skip

    def get(self, principal: Principal, upload: str) -> store_pb2.Upload:
        """Returns an upload as it stands. Raises NotFound, also for somebody else's and for an expired one."""
        return self._answer(self.session(principal, upload))

    def session(self, principal: Principal, upload: str) -> Session:
        """Returns the session of the caller's own upload. Raises NotFound."""
        session = self._index.find_upload(upload)
        if (
            session is None
            or session.expire_time <= time.time()
            or (session.tenant, session.identity) != (principal.tenant, principal.identity)
        ):
            raise _no_upload(upload)
        return session

    def _answer(self, session: Session) -> store_pb2.Upload:
        answer = store_pb2.Upload(upload=session.upload, max_chunk_bytes=CHUNK_BYTES)
        objects = self._stores.of(session.store)
        for entry in self._index.entries(session.upload):
            if not entry.complete:
                committed = min(objects.staged(stage_key(session.upload, entry.digest)), entry.size)
                answer.missing.add(digest=entry.digest, committed_offset=committed)
        answer.expire_time.FromNanoseconds(int(session.expire_time * 1e9))
        return answer

    def abort(self, principal: Principal, upload: str) -> None:
        """Gives an upload up. Harmless for one that is gone; a sealed one stays, its publishing may still commit."""
        try:
            session = self.session(principal, upload)
        except NotFound:
            return
        waiting = [entry for entry in self._index.entries(upload) if not entry.complete]
        if self._index.abort(upload):
            self._discard(session, waiting)

    def _discard(self, session: Session, entries: Sequence[Entry]) -> None:
        objects = self._stores.of(session.store)
        for entry in entries:
            objects.discard(stage_key(session.upload, entry.digest))

    def seal(self, upload: str, subject: str, tenant: str, hold: float) -> store_pb2.Upload:
        """Holds a complete upload for a publishing by ``subject`` and returns all it holds.

        Raises NotFound; PermissionDenied ``NOT_YOUR_UPLOAD``; FailedPrecondition ``UPLOAD_INCOMPLETE``.
        """
        session = self._index.find_upload(upload)
        now = time.time()
        if session is None or session.expire_time <= now or session.tenant != tenant:
            raise _no_upload(upload)
        if session.identity != subject:
            raise PermissionDenied(
                f"upload {upload} was opened by somebody else; upload the files yourself",
                reason="NOT_YOUR_UPLOAD", upload=upload,
            )  # fmt: skip
        self._complete_entries(upload)
        self._index.extend(upload, now + hold, seal=True)
        entries = self._complete_entries(upload)  # looked at again: from the sealing on, what is complete stays
        answer = self._answer(replace(session, expire_time=max(session.expire_time, now + hold)))
        answer.storage_class = session.storage_class  # type: ignore[assignment]
        for entry in entries:
            answer.entries.add(digest=entry.digest, size_bytes=entry.size)
        return answer

    def _complete_entries(self, upload: str) -> list[Entry]:
        entries = self._index.entries(upload)
        missing = [entry.digest for entry in entries if not entry.complete]
        if missing:
            raise FailedPrecondition(
                f"upload {upload} still misses {len(missing)} of {len(entries)} blobs, {missing[0]} first; send them",
                reason="UPLOAD_INCOMPLETE", upload=upload, missing=len(missing), digest=missing[0],
            )  # fmt: skip
        return entries


def _no_upload(upload: str) -> NotFound:
    return NotFound(
        f"upload {upload[:64]!r} does not exist, is not yours or has expired; open another", upload=upload[:64]
    )


def _check_entries(entries: Sequence[store_pb2.Blob], lightweight: bool) -> None:
    if len(entries) > MAX_FILES:
        raise InvalidArgument(
            f"{len(entries)} files are more than an upload takes, {MAX_FILES}; put some together in an archive",
            reason="TOO_MANY_FILES", count=len(entries), limit=MAX_FILES,
        )  # fmt: skip
    seen = set()
    for entry in entries:
        digest, size = check_digest(entry.digest, "entries.digest"), entry.size_bytes
        if digest in seen:
            raise InvalidArgument(f"{digest} is offered twice", reason="DUPLICATE_DIGEST", digest=digest)
        seen.add(digest)
        if size < 0 or (size == 0) != (digest == EMPTY_DIGEST):
            raise InvalidArgument(
                f"{digest} cannot have {size} bytes", reason="BAD_SIZE", digest=digest, size_bytes=size
            )
        if lightweight and size > MAX_LIGHTWEIGHT_BYTES:
            raise FailedPrecondition(
                f"{digest} has {size} bytes; the lightweight store takes at most {MAX_LIGHTWEIGHT_BYTES}",
                reason="NOT_LIGHTWEIGHT", digest=digest, size_bytes=size,
            )  # fmt: skip
