"""How people write resources (``iris-clf:v1``) and how the contract does (``models/iris-clf/versions/v1``)."""

from __future__ import annotations

from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument

FORMS = {
    "project": "name",
    "model": "name",
    "build": "project:tag",
    "dataset": "model:name",
    "model_version": "model:name",
    "training": "project:name",
    "deployment": "project:name",
}
"""How each kind is written by people."""


def to_name(kind: str, reference: str) -> str:
    """Returns the full name for a reference such as ``iris-clf:experiment-v1`` or, with a revision, ``…@2``.

    Raises InvalidArgument ``BAD_REFERENCE`` for a wrong number of parts, ``BAD_NAME`` for a part that breaks the
    grammar.
    """
    body, at, revision = reference.partition("@")
    parts = body.split(":")
    if len(parts) != len(FORMS[kind].split(":")):
        raise InvalidArgument(
            f"{reference!r} does not name a {kind.replace('_', ' ')}; write it as {FORMS[kind]}", reason="BAD_REFERENCE"
        )
    full = names.join(kind, *parts) + (f"@{revision}" if at else "")
    return str(names.parse(full, kind, field=kind))


def within(kind: str, owner: str, own: str) -> str:
    """Returns the full name of what lies in ``owner``, the id of a project or model, under the id ``own``.

    Of kinds that have revisions, ``own`` may name one, ``latest@2``. Raises InvalidArgument ``BAD_NAME`` for an id that
    breaks the grammar.
    """
    body, at, revision = own.partition("@") if kind in names.REVISIONED else (own, "", "")
    (names.check_tag if kind == "build" else names.check_id)(body)
    return str(names.parse(names.join(kind, owner, body) + at + revision, kind))


def to_key(name: str) -> str:
    """Returns how people write a full name: its ids joined by ``:``, with its revision if it has one. '' stays ''."""
    if not name:
        return ""
    body, at, revision = name.partition("@")
    return ":".join(body.split("/")[1::2]) + at + revision


def last_id(name: str) -> str:
    """Returns the last id of a full name, without its revision."""
    return name.partition("@")[0].rpartition("/")[2]
