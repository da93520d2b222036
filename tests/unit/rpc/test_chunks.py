"""Which paths files of one folder may have."""

from __future__ import annotations

import pytest

from noronha.rpc.chunks import clash_of


@pytest.mark.parametrize(
    "paths,clash",
    [
        ([], None),
        (["a", "b/a", "b/c/a", "ab"], None),
        (["a", "b", "a"], (2, "comes twice")),
        (["e\u0301", "\u00e9"], (1, "comes twice")),
        (["a/b/c", "a/b"], (0, "lies below a path that is a file itself")),
        (["a", "a/b/c"], (1, "lies below a path that is a file itself")),
    ],
)
def test_what_cannot_be_in_one_folder_is_found(paths: list[str], clash: tuple[int, str] | None) -> None:
    assert clash_of(paths) == clash
