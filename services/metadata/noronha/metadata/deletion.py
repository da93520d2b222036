"""What stands in the way of a deletion, and what goes with it."""

from __future__ import annotations

from collections.abc import Sequence

from noronha.metadata import kinds
from noronha.metadata.backend import GUARDED, Key, Mention, Strength, Unreferenced
from noronha.metadata.drafts import Draft, Found
from noronha.rpc.errors import AlreadyExists, FailedPrecondition

_SHOWN = 5


async def must_be_free(draft: Draft, key: Key) -> None:
    """Raises AlreadyExists when a name is used; a hopeful draft leaves that to the commit."""
    if not draft.hopeful and await draft.find(Key(key.kind, key.name)) is not None:
        raise AlreadyExists(f"{key.name} exists already; choose another name", name=key.name)


def _listed(found: Sequence[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def in_use(name: str, users: Sequence[str], hint: str) -> FailedPrecondition:
    """Returns the error for something that others refer to."""
    shown = _listed(sorted(set(users)))
    return FailedPrecondition(f"{name} is in use by {shown}; {hint}", reason="IN_USE", name=name, users=shown)


def has_children(name: str, children: Sequence[Key]) -> FailedPrecondition:
    """Returns the error for something that holds other things."""
    shown = _listed(sorted({key.name for key in children}))
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
