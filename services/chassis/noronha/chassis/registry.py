"""Backends by URL: a scheme names a class, which is imported when it is asked for and not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from noronha.rpc.errors import FailedPrecondition, InvalidArgument


class BackendClass(NamedTuple):
    """Where a backend lives, and the extra of ``noronha-dataops`` that brings what it imports ('' for none)."""

    path: str
    """``package.module:Class``."""
    extra: str = ""


def load(schemes: Mapping[str, BackendClass], url: str, setting: str) -> Any:
    """Returns the class of the backend that ``url`` names.

    ``setting`` is the key the URL came from, for the message. Raises InvalidArgument ``UNKNOWN_BACKEND`` for a scheme
    nobody registered, FailedPrecondition ``BACKEND_NOT_INSTALLED`` when what it needs is not installed.
    """
    scheme = url.partition(":")[0]
    if scheme not in schemes:
        raise InvalidArgument(
            f"{setting} names {scheme!r}, which is no backend; known are {', '.join(sorted(schemes))}",
            reason="UNKNOWN_BACKEND", setting=setting, scheme=scheme,
        )  # fmt: skip
    place = schemes[scheme]
    module, _, name = place.path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        if not place.extra or (error.name or "").startswith("noronha."):
            raise
        raise FailedPrecondition(
            f"the {scheme} backend needs: pip install 'noronha-dataops[{place.extra}]'",
            reason="BACKEND_NOT_INSTALLED", extra=place.extra, missing=error.name or "",
        ) from error  # fmt: skip


def without_credentials(url: str) -> str:
    """Returns the URL as it may be shown: user and password left out."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
