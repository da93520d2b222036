"""Search: a text in the names and descriptions of all kinds."""

from __future__ import annotations

from typing import Any

from noronha.chassis import paging
from noronha.chassis.principals import Principal
from noronha.metadata import kinds
from noronha.metadata.backend import Place
from noronha.metadata.catalog import Catalog
from noronha.metadata.filters import Equal, Matches, Not, Or
from noronha.metadata.patterns import Pattern
from noronha.rpc.errors import InvalidArgument
from noronha.v1 import metadata_pb2

MAX_QUERY = 256


async def find(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Returns a page of resources that hold a text. Raises InvalidArgument ``BAD_QUERY``, ``BAD_KIND``."""
    if not 1 <= len(request.query) <= MAX_QUERY:
        why = f"has {len(request.query)} characters; 1 to {MAX_QUERY} are allowed"
        raise InvalidArgument(f"query {why}", reason="BAD_QUERY", violations=[("query", why)])
    for kind in request.kinds:
        if kind not in kinds.MESSAGES:
            why = f"names {kind[:40]!r}; known are {', '.join(kinds.MESSAGES)}"
            raise InvalidArgument(f"kinds {why}", reason="BAD_KIND", violations=[("kinds", why)])
    looked_in = sorted(set(request.kinds)) or sorted(kinds.MESSAGES)
    query = ("search", request.query, caller.subject, *looked_in)
    after = catalog.page_tokens.unseal(request.page_token, caller.tenant, query)
    others_chests = Or((Not(Matches(("name",), Pattern("^chests/"))), Equal(("owner",), caller.subject)))
    page = await catalog.records.search(
        caller.tenant,
        request.query.casefold(),
        looked_in,
        Place(*after) if after else None,  # type: ignore[arg-type]
        paging.size_of(request.page_size),
        others_chests,
    )
    answer = metadata_pb2.SearchResourcesResponse()
    for record in page.records:
        answer.resources.append(kinds.wrap(record.key.kind, kinds.read(record.key.kind, record.body)))
    if page.following is not None:
        answer.next_page_token = catalog.page_tokens.seal(page.following, caller.tenant, query)
    return answer
