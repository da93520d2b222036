"""The stores that bytes lie in, and the names of what lies there."""

from __future__ import annotations

import re
import secrets
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from noronha.rpc.errors import Unavailable
from noronha.store.backend import Index, Objects


@dataclass(frozen=True)
class Stores:
    """The configured stores by name, and the index of what they hold."""

    index: Index
    objects: Mapping[str, Objects]
    standard: str
    """Name of the store that new blobs of the standard class go to."""
    lightweight: str
    """Name of the store that new blobs of the lightweight class go to; may be the same one."""

    def of(self, name: str) -> Objects:
        """Returns a store.

        Raises Unavailable ``STORE_NOT_CONFIGURED`` for one that blobs lie in and nobody configured.
        """
        try:
            return self.objects[name]
        except KeyError:
            raise Unavailable(
                f"these bytes lie in the store {name!r}, which this mesh is not told of; configure it again",
                reason="STORE_NOT_CONFIGURED", store=name,
            ) from None  # fmt: skip

    def close(self) -> None:
        """Closes the stores and the index."""
        for each in self.objects.values():
            each.close()
        self.index.close()


def _segment(tenant: str) -> str:
    """Returns a tenant as one part of an object's name, injectively and never `.` or `..`."""
    return urllib.parse.quote(tenant, safe="").replace(".", "%2E").replace("~", "%7E") or "%"


def tenant_of(name: str) -> str:
    """Returns the tenant that an object belongs to."""
    segment = name.partition("/")[0]
    return "" if segment == "%" else urllib.parse.unquote(segment)


def digest_of(name: str) -> str | None:
    """Returns the digest of the one blob that an object holds, None for other objects."""
    found = re.fullmatch(r"[^/]+/blobs/[0-9a-f]{2}/([0-9a-f]{64})-[0-9a-f]+", name)
    return f"sha256:{found[1]}" if found else None


def blob_object(tenant: str, digest: str) -> str:
    """Returns a fresh name for an object that holds one blob.

    The name ends in a nonce: a deletion that is on its way never meets the same blob uploaded again.
    """
    hexadecimal = digest.partition(":")[2]
    return f"{_segment(tenant)}/blobs/{hexadecimal[:2]}/{hexadecimal}-{secrets.token_hex(4)}"


def pack_object(tenant: str) -> str:
    """Returns a fresh name for an object that holds several small blobs."""
    name = secrets.token_hex(16)
    return f"{_segment(tenant)}/packs/{name[:2]}/{name}"


def is_pack(name: str) -> bool:
    """Says whether an object holds several blobs."""
    return re.fullmatch(r"[^/]+/packs/[^/]+/[^/]+", name) is not None


def stage_key(upload: str, digest: str) -> str:
    """Returns the key of the stage that takes a blob of an upload."""
    return f"{upload}/{digest.partition(':')[2]}"


def blob_of(key: str) -> str:
    """Returns the digest of the blob that a stage takes."""
    return f"sha256:{key.partition('/')[2]}"


def upload_of(key: str) -> str:
    """Returns the upload that a stage belongs to."""
    return key.partition("/")[0]
