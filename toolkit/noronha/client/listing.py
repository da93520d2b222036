"""Reads lists to their end, page by page, as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PAGE = 500
"""Records asked for at once."""


def every(call: Callable[[Any], Any], request: Any, field: str, *, limit: int | None = None) -> Iterator[Any]:
    """Yields the records of all pages, at most ``limit``.

    ``call`` is a List method of a stub, ``request`` its first request, ``field`` the answer's field that holds the
    records.
    """
    left = limit
    while left is None or left > 0:
        request.page_size = PAGE if left is None else min(PAGE, left)
        answer = call(request)
        yield from getattr(answer, field)[:left]
        if left is not None:
            left -= len(getattr(answer, field))
        if not answer.next_page_token:
            return
        request.page_token = answer.next_page_token
