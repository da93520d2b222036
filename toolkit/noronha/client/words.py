"""Words that people know for what the contract names otherwise: in what the command shows and what notebooks read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

from noronha.client.references import to_key
from noronha.client.work import state_of
from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument

if TYPE_CHECKING:
    from noronha.rpc.errors import NoronhaError

STATES = {"PENDING": "WAITING", "SUCCEEDED": "FINISHED"}
"""Words for the states of work, where they differ from the contract's."""

ORIGINS = {"LOCAL": "local", "GIT": "git", "PRE_BUILT": "pre-built"}
"""Words for where a build's source came from."""

_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?<![\w/.:@-]){_WORD}(?:/{_WORD})+(?:@[0-9]+)?(?![\w/])")


class Worded(NamedTuple):
    """A sentence in the words of people."""

    text: str
    names: list[names.Name]
    """The names that it had in the contract's form, in order."""


def in_words(sentence: str, known: Collection[str] = ()) -> Worded:
    """Returns a sentence of the mesh, of an error, a record or a log, with names as people write them: ``training p:t``
    for ``projects/p/trainings/t``.

    ``known`` are full names that it may speak of. Of names of two words, and of what stands in quotes, only these are
    told from a file's path. What a notebook's own code said is not to be given here: see ``is_quotation``.
    """
    found: list[names.Name] = []

    def worded(match: re.Match[str]) -> str:
        name = _parsed(match[0])
        # Two words with a slash between them may as well be a file of the user's, and what stands in quotes is theirs.
        quoted = sentence[: match.start()].endswith(("'", '"'))
        if name is None or ((quoted or len(name.ids) == 1) and match[0] not in known):
            return match[0]
        found.append(name)
        kind = name.kind.replace("_", " ")
        said = sentence[: match.start()].endswith(f"{kind} ")
        return to_key(match[0]) if said else f"{kind} {to_key(match[0])}"

    return Worded(_NAME.sub(worded, sentence), found)


def is_quotation(reason: str) -> bool:
    """Says whether an error with this reason tells what a user's own code said, which stays as it was said."""
    return reason == "CELL_RAISED"


def named_by(error: NoronhaError) -> set[str]:
    """Returns what an error's metadata names, for ``in_words``."""
    return {word for value in error.metadata.values() for word in re.split(r"[\s,]+", value)}


def _parsed(text: str) -> names.Name | None:
    try:
        return names.parse(text)
    except InvalidArgument:
        return None


def state_word(record: Any) -> str:
    """Returns the word for the state of a build or a training."""
    name = state_of(record)
    return STATES.get(name, name)


def origin_word(build: Any) -> str:
    """Returns the word for where a build's source came from, '' when its record does not say."""
    return ORIGINS.get(build.source.Origin.Name(build.source.origin), "")


def is_lightweight(record: Any) -> bool:
    """Says whether the files of a dataset or a version are in the store for small files."""
    from noronha.v1 import file_pb2

    return bool(record.storage_class == file_pb2.STORAGE_CLASS_LIGHTWEIGHT)
