"""What the nouns share: the records, the page tokens, and the way to Store."""

from __future__ import annotations

import os
from typing import Any, Protocol

from noronha.chassis.paging import PageTokens
from noronha.chassis.principals import Kind, Principal
from noronha.metadata import kinds
from noronha.metadata.backend import Records
from noronha.rpc.names import Name


class Uploads(Protocol):
    """What Metadata asks of Store."""

    async def SealUpload(self, request: Any) -> Any:
        """Holds a complete upload's blobs for a publishing."""
        ...


class Catalog:
    """The records and what goes with them."""

    def __init__(self, records: Records, page_tokens: PageTokens, journal: str, peers: Any) -> None:
        self.records = records
        self.page_tokens = page_tokens
        self.journal = journal
        """What tells this journal from one that took its place."""
        self._peers = peers

    @property
    def store(self) -> Uploads:
        """Store, dialled when first needed."""
        store: Uploads = self._peers.store
        return store

    @classmethod
    async def open(cls, records: Records, peers: Any) -> Catalog:
        """Opens a catalog on a backend; its keys are made when the backend is new."""
        key = await records.value("page_token_key", os.urandom(32))
        journal = await records.value("journal", os.urandom(6).hex().encode())
        return cls(records, PageTokens(key), journal.decode(), peers)


def check_scope(caller: Principal, name: Name) -> None:
    """Raises PermissionDenied ``OUT_OF_SCOPE`` when a task reaches past its own project and the models it was given."""
    if caller.kind is not Kind.TASK:
        return
    top = "/".join(name.bare.split("/")[:2])
    if top != caller.project and top not in caller.models:
        raise kinds.out_of_scope(str(name), caller.subject)
