"""Lineage: what a resource came from, and what came from it."""

from __future__ import annotations

from typing import Any

from noronha.chassis.principals import Principal
from noronha.metadata import kinds
from noronha.metadata.backend import Key, missing
from noronha.metadata.catalog import Catalog
from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument
from noronha.v1 import metadata_pb2

MAX_EDGES = 10_000
DEFAULT_DEPTH = 10
MAX_DEPTH = 100

# A project's models, a training's published versions and an island's chest tell of no origin, or tell it backwards.
_NO_ORIGINS = frozenset({"models", "published", "chest"})

Edge = tuple[Key, Key, str]


async def trace(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Returns the edges around a resource, nearest first. Raises NotFound; InvalidArgument ``BAD_DEPTH``."""
    if not 0 <= request.depth <= MAX_DEPTH:
        why = f"must be 0 to {MAX_DEPTH}"
        raise InvalidArgument(f"depth {why}", reason="BAD_DEPTH", violations=[("depth", why)])
    start = kinds.key_of(names.parse(request.name))
    record = await catalog.records.get(caller.tenant, start.name, start.revision or None)
    if record is None:
        raise missing(start)
    looked = _descendants if request.direction == metadata_pb2.GetLineageRequest.DESCENDANTS else _ancestors
    answer = metadata_pb2.Lineage()
    seen = {record.key}
    layer = [record.key]
    for _ in range(request.depth or DEFAULT_DEPTH):
        following: list[Key] = []
        for key in layer:
            for product, origin, relation in await looked(catalog, caller, key):
                if len(answer.edges) >= MAX_EDGES:
                    answer.truncated = True
                    return answer
                answer.edges.add(product=kinds.full_name(product), origin=kinds.full_name(origin), relation=relation)
                other = origin if product == key else product
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        layer = following
        if not layer:
            return answer
    for key in layer:
        if await looked(catalog, caller, key):
            answer.truncated = True
            break
    return answer


async def _ancestors(catalog: Catalog, caller: Principal, key: Key) -> list[Edge]:
    record = await catalog.records.get(caller.tenant, key.name, key.revision or None)
    if record is None:
        return []  # named still, deleted since
    message = kinds.read(key.kind, record.body)
    return [
        (key, reference.target, reference.relation)
        for reference in kinds.references_of(key.kind, message)
        if reference.relation not in _NO_ORIGINS
    ]


async def _descendants(catalog: Catalog, caller: Principal, key: Key) -> list[Edge]:
    return [
        (mention.source, key, mention.reference.relation)
        for mention in await catalog.records.mentions(caller.tenant, key.name, key.revision or None)
        if mention.reference.relation not in _NO_ORIGINS
    ]
