"""Model definitions and what they say of files."""

from __future__ import annotations

import re
from typing import Any

from noronha.chassis.principals import Principal
from noronha.metadata import deletion, kinds, masks
from noronha.metadata.backend import Childless, Key
from noronha.metadata.catalog import Catalog
from noronha.metadata.drafts import Draft, check_etag, once_of, settle
from noronha.metadata.fields import Violations
from noronha.rpc import names
from noronha.rpc.chunks import DEFAULT_MAX_MB
from noronha.v1 import model_pb2

_MOST_SPECS = 1000
_MAX_NAME = 64
_MOST_MB = 1 << 40
_BAD_CHARACTER = re.compile(r"[/\\\x00-\x1f\x7f]")


def _check_specs(wrong: Violations, field: str, specs: Any) -> None:
    if len(specs) > _MOST_SPECS:
        wrong.add(field, f"has {len(specs)} files; at most {_MOST_SPECS} are allowed")
    seen: set[str] = set()
    for index, spec in enumerate(specs):
        place = f"{field}[{index}]"
        if not 1 <= len(spec.name) <= _MAX_NAME:
            wrong.add(f"{place}.name", f"has {len(spec.name)} characters; 1 to {_MAX_NAME} are allowed")
        elif spec.name in (".", "..") or _BAD_CHARACTER.search(spec.name):
            wrong.add(f"{place}.name", f"{spec.name!r} is no file name: no path separators, no '.' and '..'")
        elif spec.name in seen:
            wrong.add(f"{place}.name", f"{spec.name!r} comes twice")
        seen.add(spec.name)
        wrong.text(f"{place}.description", spec.description)
        if spec.HasField("max_mb") and not 1 <= spec.max_mb <= _MOST_MB:
            wrong.add(f"{place}.max_mb", f"is {spec.max_mb}; it must be 1 or more")


def _settle_defaults(model: Any) -> None:
    """Checks a definition and writes its defaults out."""
    wrong = Violations()
    wrong.text("model.description", model.description)
    wrong.labels("model.labels", model.labels)
    wrong.settle()
    _check_specs(wrong, "model.model_files", model.model_files)
    _check_specs(wrong, "model.data_files", model.data_files)
    wrong.settle("BAD_FILE_SPEC")
    for spec in (*model.model_files, *model.data_files):
        if not spec.HasField("required"):
            spec.required = True
        if not spec.HasField("max_mb"):
            spec.max_mb = DEFAULT_MAX_MB


async def create(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Creates a model definition. Raises AlreadyExists; InvalidArgument, also ``BAD_FILE_SPEC``."""
    key = Key("model", names.join("model", names.check_id(request.model_id, "model_id")))

    async def attempt(draft: Draft) -> Any:
        model = model_pb2.Model()
        model.CopyFrom(request.model)
        model.name = key.name
        _settle_defaults(model)
        await deletion.must_be_free(draft, key)
        draft.create(key, model)
        return model

    return await settle(catalog.records, caller.tenant, once_of(caller, request), model_pb2.Model, attempt)


async def update(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Changes a definition's named fields. Raises NotFound; Aborted ``STALE_ETAG``; InvalidArgument."""
    sent = request.model
    parsed = kinds.parse(sent.name, "model", field="model.name")
    paths = masks.paths_of(sent, request.update_mask, masks.server_made(sent.DESCRIPTOR))

    async def attempt(draft: Draft) -> Any:
        found = await draft.read(parsed)
        check_etag(sent.etag, found)
        model = model_pb2.Model()
        model.CopyFrom(found.message)
        masks.copy_paths(sent, model, paths)
        _settle_defaults(model)
        draft.replace(found, model)
        return model

    return await settle(catalog.records, caller.tenant, once_of(caller, request), model_pb2.Model, attempt)


async def delete(catalog: Catalog, caller: Principal, request: Any) -> None:
    """Deletes a definition and, when forced, its versions, datasets and aliases; all is checked before.

    Raises NotFound; Aborted ``STALE_ETAG``; FailedPrecondition ``IN_USE``, ``HAS_CHILDREN``.
    """
    parsed = kinds.parse(request.name, "model")

    async def attempt(draft: Draft) -> Any:
        found = await draft.read(parsed)
        check_etag(request.etag, found)
        prefix = f"{parsed.bare}/"
        children = await catalog.records.below(caller.tenant, prefix)
        users = [
            *await deletion.users_of(draft, parsed.bare),
            # Aliases of its own go with it.
            *[each for each in await deletion.users_of(draft, prefix) if not each.source.name.startswith(prefix)],
        ]
        if users:
            raise deletion.in_use(parsed.bare, users, "take it out of them first")
        if children and not request.force:
            raise deletion.has_children(parsed.bare, [key for key, _ in children])
        for key, version in children:
            draft.delete(key, version)
        draft.delete(found.key, found.version)
        await deletion.clear_mentions(draft, parsed.bare)
        await deletion.clear_mentions(draft, prefix)
        draft.require(Childless(prefix))
        return found.message

    await settle(catalog.records, caller.tenant, None, model_pb2.Model, attempt)
