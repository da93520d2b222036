"""Chests: seen and changed by their owner alone. What keeps their credentials is not built yet, so none are taken."""

from __future__ import annotations

from typing import Any

from noronha.chassis.principals import Principal
from noronha.metadata import deletion, kinds, masks
from noronha.metadata.backend import Key, missing
from noronha.metadata.catalog import Catalog
from noronha.metadata.drafts import Draft, Found, check_etag, once_of, settle
from noronha.metadata.fields import Violations
from noronha.rpc import json_text, names
from noronha.rpc.errors import FailedPrecondition
from noronha.rpc.names import Name
from noronha.v1 import chest_pb2


def _refuse_credentials(chest: Any) -> None:
    if chest.HasField("credentials"):
        raise FailedPrecondition(
            "this mesh has nothing to keep credentials in; leave them out", reason="NO_SECRETS_BACKEND"
        )


def _check(chest: Any) -> None:
    wrong = Violations()
    wrong.text("chest.description", chest.description)
    wrong.settle()
    json_text.read(chest.details_json, "chest.details_json")
    chest.details_json = chest.details_json or "{}"


async def _mine(draft: Draft, caller: Principal, name: Name) -> Found:
    found = await draft.read(name)
    if found.message.owner != caller.subject:
        raise missing(found.key)
    return found


async def create(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Creates a chest. Raises AlreadyExists; FailedPrecondition ``NO_SECRETS_BACKEND``; InvalidArgument."""
    key = Key("chest", names.join("chest", names.check_id(request.chest_id, "chest_id")))
    _refuse_credentials(request.chest)

    async def attempt(draft: Draft) -> Any:
        chest = chest_pb2.Chest()
        chest.CopyFrom(request.chest)
        chest.name, chest.owner, chest.has_credentials = key.name, caller.subject, False
        _check(chest)
        await deletion.must_be_free(draft, key)
        draft.create(key, chest)
        return chest

    return await settle(catalog.records, caller.tenant, once_of(caller, request), chest_pb2.Chest, attempt)


async def update(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Changes a chest's named fields. Raises as ``create``, and NotFound; Aborted ``STALE_ETAG``."""
    sent = request.chest
    parsed = kinds.parse(sent.name, "chest", field="chest.name")
    _refuse_credentials(sent)
    paths = masks.paths_of(sent, request.update_mask, masks.server_made(sent.DESCRIPTOR))
    paths = [path for path in paths if path.partition(".")[0] != "credentials"]

    async def attempt(draft: Draft) -> Any:
        found = await _mine(draft, caller, parsed)
        check_etag(sent.etag, found)
        chest = chest_pb2.Chest()
        chest.CopyFrom(found.message)
        masks.copy_paths(sent, chest, paths)
        _check(chest)
        draft.replace(found, chest)
        return chest

    return await settle(catalog.records, caller.tenant, once_of(caller, request), chest_pb2.Chest, attempt)


async def delete(catalog: Catalog, caller: Principal, request: Any) -> None:
    """Deletes a chest. Raises NotFound; Aborted ``STALE_ETAG``; FailedPrecondition ``IN_USE`` for an island's."""
    parsed = kinds.parse(request.name, "chest")

    async def attempt(draft: Draft) -> Any:
        found = await _mine(draft, caller, parsed)
        check_etag(request.etag, found)
        users = await deletion.users_of(draft, parsed.bare)
        if users:
            raise deletion.in_use(parsed.bare, users, "delete them first")
        draft.delete(found.key, found.version)
        await deletion.clear_mentions(draft, parsed.bare)
        return found.message

    await settle(catalog.records, caller.tenant, None, chest_pb2.Chest, attempt)
