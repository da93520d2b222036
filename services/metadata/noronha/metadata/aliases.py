"""Aliases: movable names of versions, moved by compare-and-swap, with their history."""

from __future__ import annotations

from typing import Any

from noronha.chassis.principals import Principal
from noronha.metadata import deletion, documents, kinds, references
from noronha.metadata.backend import Key
from noronha.metadata.catalog import Catalog
from noronha.metadata.drafts import Draft, check_etag, once_of, settle
from noronha.rpc import names
from noronha.rpc.errors import Aborted, InvalidArgument
from noronha.v1 import alias_pb2

MAX_HISTORY = 100
"""Moves that an alias remembers."""


def _check_model(alias: str, version: str, field: str) -> None:
    if version.split("/")[:2] != alias.split("/")[:2]:
        why = f"is a version of another model than {alias}"
        raise InvalidArgument(f"{field} {why}", reason="OTHER_MODEL", violations=[(field, why)], version=version)


def _enter(draft: Draft, alias: Any, caller: Principal) -> None:
    """Puts the present move at the head of an alias's history."""
    move = alias_pb2.AliasMove(
        model_version=alias.model_version, time=documents.timestamp(draft.now), mover=caller.subject
    )
    kept = [move, *alias.history][:MAX_HISTORY]
    alias.ClearField("history")
    alias.history.extend(kept)


async def create(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Creates an alias. Raises AlreadyExists; NotFound for the model or the version; InvalidArgument."""
    parent = kinds.parse(request.parent, "model", field="parent")
    key = Key("alias", names.join("alias", parent.ids[0], names.check_id(request.alias_id, "alias_id")))

    async def attempt(draft: Draft) -> Any:
        alias = alias_pb2.Alias(name=key.name)
        await draft.refer(parent)
        await deletion.must_be_free(draft, key)
        alias.model_version, _ = await references.complete(
            draft, request.alias.model_version, "model_version", "alias.model_version"
        )
        _check_model(key.name, alias.model_version, "alias.model_version")
        _enter(draft, alias, caller)
        draft.create(key, alias)
        return alias

    return await settle(catalog.records, caller.tenant, once_of(caller, request), alias_pb2.Alias, attempt)


async def move(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Moves an alias. Raises NotFound; Aborted ``STALE_ALIAS`` when it stands for something else than expected."""
    parsed = kinds.parse(request.name, "alias")
    expected = kinds.parse(request.expected_model_version, "model_version", field="expected_model_version")
    if expected.revision is None:
        raise names.bad_name(request.expected_model_version, "expected_model_version", "names no revision; add @1")

    async def attempt(draft: Draft) -> Any:
        found = await draft.read(parsed)
        if found.message.model_version != str(expected):
            raise Aborted(
                f"{parsed.bare} stands for {found.message.model_version}, not for {expected}; read it again",
                reason="STALE_ALIAS", name=parsed.bare, model_version=found.message.model_version,
            )  # fmt: skip
        alias = alias_pb2.Alias()
        alias.CopyFrom(found.message)
        alias.model_version, _ = await references.complete(
            draft, request.model_version, "model_version", "model_version"
        )
        _check_model(parsed.bare, alias.model_version, "model_version")
        _enter(draft, alias, caller)
        draft.replace(found, alias)
        return alias

    return await settle(catalog.records, caller.tenant, once_of(caller, request), alias_pb2.Alias, attempt)


async def delete(catalog: Catalog, caller: Principal, request: Any) -> None:
    """Deletes an alias. Raises NotFound; Aborted ``STALE_ETAG``."""
    parsed = kinds.parse(request.name, "alias")

    async def attempt(draft: Draft) -> Any:
        found = await draft.read(parsed)
        check_etag(request.etag, found)
        draft.delete(found.key, found.version)
        return found.message

    await settle(catalog.records, caller.tenant, None, alias_pb2.Alias, attempt)
