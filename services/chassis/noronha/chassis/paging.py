"""Pages of lists: their size, and tokens that say where the next one begins."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence

from noronha.rpc.errors import InvalidArgument

DEFAULT_SIZE = 50
"""Entries in a page when none are asked for."""

MAX_SIZE = 1000
"""Most entries in a page; more are cut to this."""

MAX_PAGE_BYTES = 2 << 20
"""Bytes after which a page ends early: 2 MiB, so that it stays under gRPC's 4 MiB whatever its last entry is."""

_MAC_BYTES = 16

Position = Sequence[str | int]


def size_of(page_size: int) -> int:
    """Returns how many entries a page gets. Raises InvalidArgument ``BAD_PAGE_SIZE`` for a negative number."""
    if page_size < 0:
        why = "must not be negative; 0 means the default"
        raise InvalidArgument(
            f"page_size {why}", reason="BAD_PAGE_SIZE", violations=[("page_size", why)], page_size=page_size
        )
    return min(page_size, MAX_SIZE) or DEFAULT_SIZE


class PageTokens:
    """Makes and reads page tokens: a position, sealed with a key to the tenant and the query it belongs to."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _mac(self, tenant: str, query: Position, position: bytes) -> bytes:
        bound = json.dumps([tenant, *query], ensure_ascii=True).encode()
        return hmac.new(self._key, len(bound).to_bytes(8, "big") + bound + position, hashlib.sha256).digest()[
            :_MAC_BYTES
        ]

    def seal(self, position: Position, tenant: str, query: Position) -> str:
        """Returns the token for a position in the answer to a query; ``query`` is whatever must stay the same."""
        inside = json.dumps(list(position), separators=(",", ":"), ensure_ascii=True).encode()
        sealed = self._mac(tenant, query, inside) + inside
        return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def unseal(self, token: str, tenant: str, query: Position) -> list[str | int] | None:
        """Returns the position of a token, None for ''.

        Raises InvalidArgument ``BAD_PAGE_TOKEN`` for a token that is not ours, or that another query or tenant got.
        """
        if not token:
            return None
        try:
            sealed = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            sealed = b""
        mac, inside = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        # Unused bits of the last character would make several texts of one token; only the one we wrote is ours.
        ours = base64.urlsafe_b64encode(sealed).rstrip(b"=") == token.encode("utf-8", "surrogatepass")
        if not ours or not hmac.compare_digest(mac, self._mac(tenant, query, inside)):
            why = "is not one of this mesh's, or belongs to another query; start again without it"
            raise InvalidArgument(f"page_token {why}", reason="BAD_PAGE_TOKEN", violations=[("page_token", why)])
        position: list[str | int] = json.loads(inside)
        return position
