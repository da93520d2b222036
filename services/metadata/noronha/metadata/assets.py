"""Versions and datasets: published as immutable revisions from uploads, and deleted when nothing needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from noronha.chassis import anonymous
from noronha.chassis.principals import Kind, Principal
from noronha.metadata import deletion, files, kinds, masks, references
from noronha.metadata.backend import Key, Means, Unchanged, missing
from noronha.metadata.catalog import Catalog, check_scope
from noronha.metadata.drafts import Draft, Found, check_etag, once_of, settle
from noronha.metadata.fields import Violations
from noronha.rpc import json_text, names
from noronha.rpc.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied
from noronha.v1 import file_pb2

_DRAWS = 20


@dataclass(frozen=True)
class Asset:
    """One of the two kinds: how it is called, and which files of the model's definition are meant."""

    kind: str
    specs: str
    """Field of the model that lists its files."""
    references: tuple[str, ...]
    """Fields that name other resources."""


VERSION = Asset("model_version", "model_files", ("training", "dataset", "pretrained"))
DATASET = Asset("dataset", "data_files", ())

_DESCRIBES_FILES = ("compressed", "storage_class")
"""Fields that say how the files of an upload are kept, and so come with it."""


async def create(catalog: Catalog, caller: Principal, asset: Asset, request: Any) -> Any:
    """Creates revision 1 of a name from an upload; without an id, one is drawn.

    Raises AlreadyExists; NotFound for references; InvalidArgument; FailedPrecondition ``MISSING_FILE``,
    ``FILE_TOO_LARGE``, ``UPLOAD_INCOMPLETE``, ``BLOB_NOT_HELD``, ``NOT_LIGHTWEIGHT``.
    """
    parent = kinds.parse(request.parent, "model", field="parent")
    check_scope(caller, parent)
    chosen = getattr(request, f"{asset.kind}_id")
    if chosen:
        names.check_id(chosen, f"{asset.kind}_id")
    publishing = _Publishing(catalog, caller, asset, request)

    async def attempt(draft: Draft) -> Any:
        name = names.join(asset.kind, parent.ids[0], chosen or await _draw(draft, asset, parent.ids[0]))
        await deletion.must_be_free(draft, Key(asset.kind, name))
        return await publishing.make(draft, name, None, list(publishing.every_field))

    return await settle(catalog.records, caller.tenant, once_of(caller, request), kinds.MESSAGES[asset.kind], attempt)


async def _draw(draft: Draft, asset: Asset, model: str) -> str:
    for _ in range(_DRAWS):
        drawn = anonymous.draw()
        if await draft.find(Key(asset.kind, names.join(asset.kind, model, drawn))) is None:
            return drawn
    raise Aborted("no free name was drawn; choose one yourself", reason="BUSY")


async def publish(catalog: Catalog, caller: Principal, asset: Asset, request: Any) -> Any:
    """Publishes the next revision of a name, carrying over what the request does not touch.

    Raises as ``create``, and NotFound unless ``allow_missing``; Aborted ``STALE_REVISION``.
    """
    sent = getattr(request, asset.kind)
    parsed = kinds.parse(sent.name, asset.kind, field=f"{asset.kind}.name")
    check_scope(caller, parsed)
    if parsed.revision is not None:
        raise names.bad_name(sent.name, f"{asset.kind}.name", "names a revision; publishing makes the next one")
    if request.without_files and request.upload:
        raise InvalidArgument("without_files and an upload contradict each other; send one", reason="UPLOAD_UNWANTED")
    publishing = _Publishing(catalog, caller, asset, request)
    paths = masks.paths_of(sent, request.update_mask, masks.server_made(sent.DESCRIPTOR))

    async def attempt(draft: Draft) -> Any:
        newest = await _newest(draft, Key(asset.kind, parsed.bare))
        if newest is None and not request.allow_missing:
            raise missing(Key(asset.kind, parsed.bare))
        revision = newest.key.revision if newest else 0
        if request.expected_revision and request.expected_revision != revision:
            raise Aborted(
                f"the newest revision of {parsed.bare} is {revision}, not {request.expected_revision}; read it again",
                reason="STALE_REVISION", name=parsed.bare, revision=revision,
            )  # fmt: skip
        return await publishing.make(draft, parsed.bare, newest, paths if newest else list(publishing.every_field))

    return await settle(catalog.records, caller.tenant, once_of(caller, request), kinds.MESSAGES[asset.kind], attempt)


async def _newest(draft: Draft, key: Key) -> Found | None:
    """Returns the newest revision of a name; versions and datasets mean it by their bare name."""
    return await draft.find(Key(key.kind, key.name))


class _Publishing:
    """One request to publish, checked as far as that goes without looking at any record."""

    def __init__(self, catalog: Catalog, caller: Principal, asset: Asset, request: Any) -> None:
        self._catalog = catalog
        self._caller = caller
        self._asset = asset
        self._request = request
        self._sent = getattr(request, asset.kind)
        self._sealed: Any = None
        descriptor = self._sent.DESCRIPTOR
        made = masks.server_made(descriptor)
        self.every_field = tuple(field.name for field in descriptor.fields if field.name not in made)
        json_text.read(self._sent.details_json, f"{asset.kind}.details_json")
        wrong = Violations()
        wrong.labels(f"{asset.kind}.labels", self._sent.labels)
        wrong.settle()
        files.check_manifest(request.files, request.upload)

    async def make(self, draft: Draft, name: str, newest: Found | None, paths: list[str]) -> Any:
        """Writes the next revision of a name into a draft."""
        asset, request = self._asset, self._request
        model = await draft.read(kinds.parse("/".join(name.split("/")[:2]), "model", field="parent"))
        # The definition must be the same at the commit: what is checked here against it stays true.
        draft.require(Unchanged(model.key, model.version))
        message = kinds.MESSAGES[asset.kind]()
        made: Any = message
        if newest is not None:
            made.CopyFrom(newest.message)
        if request.upload:
            paths = [*(path for path in paths if path not in _DESCRIBES_FILES), *_DESCRIBES_FILES]
        elif newest is not None:
            self._check_carried(newest.message, paths)
        masks.copy_paths(self._sent, made, paths)
        made.name = name
        made.details_json = made.details_json or "{}"
        touched = {path.partition(".")[0] for path in paths}
        await self._refer(draft, made, touched)
        specs = getattr(model.message, asset.specs)
        await self._take_files(made, specs, f"model {model.message.name.partition('/')[2]}", newest)
        made.revision = max(await draft.records.highest(draft.tenant, name), newest.key.revision if newest else 0) + 1
        if newest is not None:
            draft.require(Unchanged(newest.key, newest.version))
        draft.require(Means(name, newest.key.revision if newest else 0))
        draft.create(Key(asset.kind, name, made.revision), made)
        return made

    def _check_carried(self, newest: Any, paths: list[str]) -> None:
        for field in _DESCRIBES_FILES:
            if field in paths and newest.stored and getattr(self._sent, field) != getattr(newest, field):
                raise InvalidArgument(
                    f"{field} tells how files are kept; send the files anew to change it",
                    reason="UPLOAD_REQUIRED", violations=[(f"{self._asset.kind}.{field}", "comes with an upload")],
                )  # fmt: skip

    async def _refer(self, draft: Draft, made: Any, touched: set[str]) -> None:
        """Completes the references that the request touches, and freezes what they stand for."""
        if self._asset is not VERSION:
            return
        freeze = {
            "training": ("training", references.training_snapshot),
            "dataset": ("dataset", references.dataset_snapshot),
            "pretrained": ("model_version", references.version_snapshot),
        }
        for field, (kind, snapshot) in freeze.items():
            if field not in touched:
                continue
            made.ClearField(f"{field}_snapshot")
            name = getattr(made, field)
            if not name:
                continue
            path = f"model_version.{field}"
            check_scope(self._caller, kinds.parse(name, kind, field=path))
            stored, found = await references.complete(draft, name, kind, path)
            if field == "training" and self._caller.kind is Kind.TASK and kinds.has_ended(kind, found.message):
                raise FailedPrecondition(
                    f"{name} has ended; nothing is published in its name any more", reason="TASK_ENDED", name=name
                )
            setattr(made, field, stored)
            getattr(made, f"{field}_snapshot").CopyFrom(snapshot(found.message))
        if self._caller.kind is Kind.TASK and "training" in touched and made.training not in ("", self._caller.subject):
            raise PermissionDenied(
                f"{self._caller.subject} may not publish in the name of {made.training}",
                reason="OUT_OF_SCOPE", training=made.training,
            )  # fmt: skip

    async def _take_files(self, made: Any, specs: Any, what: str, newest: Found | None) -> None:
        request = self._request
        if request.upload:
            if self._sealed is None:
                self._sealed = await files.seal(self._catalog, self._caller, request.upload)
            self._settle_storage_class(made, self._sealed.storage_class)
            taken = files.take(self._sealed, request.files)
            files.check_definition(taken, specs, compressed=made.compressed, what=what)
            made.ClearField("files")
            made.files.extend(taken)
            made.stored = True
        else:
            if made.storage_class == file_pb2.STORAGE_CLASS_UNSPECIFIED:
                made.storage_class = file_pb2.STORAGE_CLASS_STANDARD
            if newest is None or request.without_files:
                made.ClearField("files")
                made.stored = False
        if made.storage_class == file_pb2.STORAGE_CLASS_LIGHTWEIGHT:
            files.check_lightweight(made.files, specs, what)
        made.size_bytes = sum(file.size_bytes for file in made.files)

    def _settle_storage_class(self, made: Any, held: int) -> None:
        held = held or file_pb2.STORAGE_CLASS_STANDARD
        if made.storage_class not in (file_pb2.STORAGE_CLASS_UNSPECIFIED, held):
            raise InvalidArgument(
                "the upload was opened for another storage class; open one for the class that is wanted",
                reason="STORAGE_CLASS_MISMATCH",
            )
        made.storage_class = held


async def delete(catalog: Catalog, caller: Principal, asset: Asset, request: Any) -> None:
    """Deletes a name with all its revisions, or one revision, and takes it out of trainings that published it.

    Forced, aliases that stand for it go too. Raises NotFound; Aborted ``STALE_ETAG``; FailedPrecondition ``IN_USE``.
    """
    parsed = kinds.parse(request.name, asset.kind)

    async def attempt(draft: Draft) -> Any:
        found = await draft.read(parsed)
        check_etag(request.etag, found)
        users = await deletion.users_of(draft, parsed.bare, parsed.revision)
        if users and not request.force:
            raise deletion.in_use(str(parsed), users, "take it out of them first")
        revisions = await catalog.records.revisions(caller.tenant, parsed.bare)
        if parsed.revision is None or len(revisions) == 1:
            await _delete_all(draft, asset, parsed.bare, revisions)
        else:
            await _delete_one(draft, found, revisions)
        for user in users:
            if user.source.kind == "alias":
                draft.delete(user.source, user.version)
        await deletion.clear_mentions(draft, parsed.bare, parsed.revision, forced=request.force)
        return found.message

    await settle(catalog.records, caller.tenant, None, kinds.MESSAGES[asset.kind], attempt)


async def _delete_all(draft: Draft, asset: Asset, name: str, revisions: list[tuple[int, int]]) -> None:
    for revision, version in revisions:
        draft.delete(Key(asset.kind, name, revision), version)
    # A revision that is published meanwhile becomes what the name means, and this is asked again.
    draft.require(Means(name, revisions[0][0]))


async def _delete_one(draft: Draft, found: Found, revisions: list[tuple[int, int]]) -> None:
    newest = revisions[0][0]
    follower = None
    if found.key.revision == newest:
        follower = revisions[1][0]
        draft.require(Unchanged(Key(found.key.kind, found.key.name, follower), revisions[1][1]))
    draft.require(Means(found.key.name, newest))
    draft.delete(found.key, found.version, current=follower)
