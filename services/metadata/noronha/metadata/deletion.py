"""What stands in the way of a deletion, and what goes with it."""

from __future__ import annotations

from collections.abc import Sequence

from noronha.metadata import kinds
from noronha.metadata.backend import GUARDED, Key, Mention, Strength, Unreferenced
from noronha.metadata.drafts import Draft, Found
from noronha.rpc.errors import AlreadyExists, FailedPrecondition

_SHOWN = 5
_PARTS = ("deployment_revision", "replica", "traffic")
"""Kinds of what belongs to a deployment and has no life of its own."""


async def must_be_free(draft: Draft, key: Key) -> None:
    """Raises AlreadyExists when a name is used; a hopeful draft leaves that to the commit."""
    if not draft.hopeful and await draft.find(Key(key.kind, key.name)) is not None:
        raise AlreadyExists(f"{key.name} exists already; choose another name", name=key.name)


def listed(found: Sequence[str]) -> str:
    """Returns the first few of several names in one text, and how many more there are."""
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def known_as(keys: Sequence[Key]) -> list[str]:
    """Returns resources as people know them, each once and in order: what is a part of a deployment as the deployment,
    with its revisions where it is only earlier ones."""
    whole = {kinds.full_name(key) for key in keys if key.kind not in _PARTS}
    revisions: dict[str, list[int]] = {}
    for key in keys:
        if key.kind in _PARTS:
            revisions.setdefault("/".join(key.name.split("/")[:4]), []).append(key.revision)
    for name, numbers in revisions.items():
        if name not in whole:
            earlier = listed([str(number) for number in sorted(numbers) if number])
            whole.add(f"{name} (revision {earlier})" if earlier else name)
    return sorted(whole)


def in_use(name: str, users: Sequence[Mention], hint: str) -> FailedPrecondition:
    """Returns the error for something that others refer to."""
    shown = listed(known_as([each.source for each in users]))
    return FailedPrecondition(f"{name} is in use by {shown}; {hint}", reason="IN_USE", name=name, users=shown)


def has_children(name: str, children: Sequence[Key]) -> FailedPrecondition:
    """Returns the error for something that holds other things."""
    shown = listed(known_as([key._replace(revision=0) for key in children]))
    return FailedPrecondition(
        f"{name} holds {shown}; delete them first", reason="HAS_CHILDREN", name=name, children=shown
    )


async def users_of(draft: Draft, name: str, revision: int | None = None) -> list[Mention]:
    """Returns the references that forbid a deletion, but for those from what the draft writes or deletes."""
    found = await draft.records.mentions(draft.tenant, name, revision)
    return [
        each
        for each in found
        if each.reference.strength in (Strength.BINDING, Strength.FOLLOWING) and not draft.has_written(each.source)
    ]


async def clear_mentions(draft: Draft, name: str, revision: int | None = None, *, forced: bool = False) -> None:
    """Takes something deleted, or everything below a name that ends in ``/``, out of the records that name it.

    That no other record names it becomes a condition; ``forced`` leaves those references alone that would forbid the
    deletion.
    """
    for mention in await draft.records.mentions(draft.tenant, name, revision):
        if mention.reference.strength is not Strength.CLEARED:
            continue
        found = await draft.find(mention.source)
        if found is not None:
            _take_out(draft, found, mention)
    strengths = (Strength.CLEARED, Strength.FOLLOWING) if forced else GUARDED
    draft.require(Unreferenced(name, revision, strengths))


def _take_out(draft: Draft, found: Found, mention: Mention) -> None:
    message = type(found.message)()
    message.CopyFrom(found.message)
    name = kinds.full_name(mention.reference.target)
    relation = mention.reference.relation
    if relation == "published":
        kept = [each for each in message.published if each != name]
        del message.published[:]
        message.published.extend(kept)
    else:
        message.ClearField(relation)
    draft.replace(found, message, current=None)
