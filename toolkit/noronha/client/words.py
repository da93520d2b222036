"""Words that people know for what the contract names otherwise: in what the command shows and what notebooks read."""

from __future__ import annotations

from typing import Any

from noronha.client.work import state_of

STATES = {"PENDING": "WAITING", "SUCCEEDED": "FINISHED"}
"""Words for the states of work, where they differ from the contract's."""

ORIGINS = {"LOCAL": "local", "GIT": "git", "PRE_BUILT": "pre-built"}
"""Words for where a build's source came from."""


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
