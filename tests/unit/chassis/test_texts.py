"""What services share about texts: page tokens, positions, drawn names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noronha.chassis import anonymous, paging
from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument

POSITIONS = st.lists(st.text(max_size=5) | st.integers(-(2**60), 2**60), max_size=4)


@given(POSITIONS, POSITIONS)
def test_a_token_leads_back_to_its_position(position: list[str | int], query: list[str | int]) -> None:
    tokens = paging.PageTokens(b"key")
    token = tokens.seal(position, "t", query)
    assert tokens.unseal(token, "t", query) == position
    for other in (
        lambda: tokens.unseal(token, "u", query),
        lambda: tokens.unseal(token, "t", [*query, ""]),
        lambda: paging.PageTokens(b"other").unseal(token, "t", query),
        lambda: tokens.unseal(token[:-1], "t", query),
        lambda: tokens.unseal(token + "=", "t", query),
    ):
        with pytest.raises(InvalidArgument) as caught:
            other()
        assert caught.value.reason == "BAD_PAGE_TOKEN"


def test_page_sizes() -> None:
    assert [paging.size_of(each) for each in (0, 1, 1000, 1001, 2**31 - 1)] == [50, 1, 1000, 1000, 1000]
    with pytest.raises(InvalidArgument) as caught:
        paging.size_of(-1)
    assert caught.value.reason == "BAD_PAGE_SIZE"


def test_drawn_names_are_names() -> None:
    drawn = {anonymous.draw() for _ in range(500)}
    assert len(drawn) > 490
    for each in drawn:
        names.check_id(each)
        assert len(each.split("-")) == 3
