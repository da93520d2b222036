"""Reading by name and in lists: the same for every kind."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.field_mask_pb2 import FieldMask

from noronha.chassis import paging
from noronha.chassis.principals import Principal
from noronha.metadata import filters, kinds, masks
from noronha.metadata.backend import Place, Record, Scan, missing
from noronha.metadata.catalog import Catalog, check_scope
from noronha.metadata.filters import And, Equal, Node
from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument

_ORDERS = ("name", "create_time", "update_time")

_PARENTS = {
    "build": "project", "training": "project", "deployment": "project", "notebook": "project",
    "deployment_revision": "deployment", "replica": "deployment",
    "model_version": "model", "dataset": "model", "alias": "model",
}  # fmt: skip
"""Kind to the kind it is listed in; the others are listed at the top."""


def owner_only(caller: Principal, kind: str) -> Node | None:
    """Returns the filter that hides what is somebody else's, None where everybody sees everything."""
    return Equal(("owner",), caller.subject) if kind == "chest" else None


async def get(catalog: Catalog, caller: Principal, kind: str, name: str, mask: FieldMask) -> Any:
    """Returns a resource by its name. Raises InvalidArgument ``BAD_NAME``, ``BAD_MASK``; NotFound."""
    parsed = kinds.parse(name, kind)
    check_scope(caller, parsed)
    key = kinds.key_of(parsed)
    record = await catalog.records.get(caller.tenant, key.name, key.revision or None)
    if record is None:
        raise missing(key)
    message = kinds.read(kind, record.body)
    if kind == "chest" and message.owner != caller.subject:
        raise missing(key)
    return masks.pick(message, mask) if mask.paths else message


class Listing(NamedTuple):
    """A page of resources."""

    messages: list[Any]
    next_page_token: str


def _order_of(order_by: str) -> tuple[str, bool]:
    words = order_by.split()
    if not words:
        return "name", False
    if words[0] not in _ORDERS or words[1:] not in ([], ["desc"], ["asc"]):
        why = f"must be one of {', '.join(_ORDERS)}, with ' desc' for the reverse"
        raise InvalidArgument(f"order_by {why}", reason="BAD_ORDER", violations=[("order_by", why)])
    return words[0], words[1:] == ["desc"]


async def _scope_of(catalog: Catalog, caller: Principal, kind: str, parent: str) -> tuple[str, tuple[str, ...]]:
    """Returns what names in a parent begin with and, when ``-`` stands for an id, their shape."""
    words = names.PATTERNS[kind].split("/")
    if kind not in _PARENTS:
        return f"{words[0]}/", ()
    parsed = names.parse(parent, _PARENTS[kind], field="parent", wildcard=True)
    check_scope(caller, parsed)
    parts = parsed.bare.split("/")
    if "-" in parsed.ids:
        known = parts[: parts.index("-")]
        shape = (*parts, words[-2]) if kind == "deployment_revision" else (*parts, words[-2], "-")
        return "/".join(known) + "/", shape
    if await catalog.records.get(caller.tenant, parsed.bare) is None:
        raise missing(kinds.key_of(parsed))
    return f"{parsed.bare}/" if kind == "deployment_revision" else f"{parsed.bare}/{words[-2]}/", ()


async def list_page(catalog: Catalog, caller: Principal, kind: str, request: Any) -> Listing:
    """Returns a page of resources.

    Raises InvalidArgument ``BAD_NAME``, ``BAD_PAGE_SIZE``, ``BAD_PAGE_TOKEN``, ``BAD_FILTER``, ``BAD_ORDER``,
    ``BAD_MASK``; NotFound for the parent.
    """
    parent = getattr(request, "parent", "")
    every_revision = kind == "deployment_revision" or getattr(request, "all_revisions", False)
    limit = paging.size_of(request.page_size)
    order, descending = _order_of(request.order_by)
    masks.check_read(kinds.MESSAGES[kind], request.read_mask)
    tree = filters.parse(request.filter, kinds.MESSAGES[kind])
    mine = owner_only(caller, kind)
    query = (kind, parent, request.filter, order, descending, every_revision, caller.subject if mine else "")
    after = catalog.page_tokens.unseal(request.page_token, caller.tenant, query)
    prefix, shape = await _scope_of(catalog, caller, kind, parent)
    page = await catalog.records.scan(
        caller.tenant,
        Scan(
            kind,
            prefix=prefix,
            shape=shape,
            every_revision=every_revision,
            filter=And((mine, tree)) if mine else tree,
            order=order,
            descending=descending,
            after=Place(*after) if after else None,  # type: ignore[arg-type]
            limit=limit,
            max_bytes=paging.MAX_PAGE_BYTES,
        ),
    )
    token = catalog.page_tokens.seal(page.following, caller.tenant, query) if page.following else ""
    return Listing([_message(record, request.read_mask) for record in page.records], token)


def _message(record: Record, mask: FieldMask) -> Any:
    message = kinds.read(record.key.kind, record.body)
    return masks.pick(message, mask) if mask.paths else message
