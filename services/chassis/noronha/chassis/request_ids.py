"""Request ids: what makes the repeat of a request harmless, and tells it from another request under the same id."""

from __future__ import annotations

import hashlib
from typing import Any, cast

from noronha.chassis.principals import Principal
from noronha.rpc.errors import InvalidArgument
from noronha.v1 import records_pb2

MAX_LENGTH = 36
"""Most characters of a request id; a UUID has as many."""


def check(request_id: str) -> str:
    """Returns a request id, '' for none. Raises InvalidArgument ``BAD_REQUEST_ID`` for one that is too long."""
    if len(request_id) > MAX_LENGTH:
        why = f"has more than {MAX_LENGTH} characters; a UUID has {MAX_LENGTH}"
        raise InvalidArgument(f"request_id {why}", reason="BAD_REQUEST_ID", violations=[("request_id", why)])
    return request_id


def fingerprint(request: Any, caller: Principal) -> bytes:
    """Returns the digest of what is asked and by whom: the kind of request, the caller, and the body.

    Its id may be in it: only requests of one id are ever compared.
    """
    asked = f"{request.DESCRIPTOR.full_name}\0{caller.identity}\0".encode()
    return hashlib.sha256(asked + request.SerializeToString(deterministic=True)).digest()


async def first_answer(records: Any, request: Any, caller: Principal) -> records_pb2.CommitRecordsResponse | None:
    """Returns what Records answered when this request was made before, None when it was not.

    For a request that is about to be refused: the state that let it through the first time may have passed. Records is
    asked with a write of nothing, which it refuses unless the request is a repeat. Raises AlreadyExists
    ``REQUEST_ID_REUSED``.
    """
    if not request.request_id:
        return None
    nothing = records_pb2.CreateRecordRequest(
        request_id=request.request_id, request_fingerprint=fingerprint(request, caller)
    )
    write = records_pb2.CommitRecordsRequest.Write(create=nothing)
    try:
        answer = await records.CommitRecords(records_pb2.CommitRecordsRequest(writes=[write]))
    except InvalidArgument:
        return None
    return cast(records_pb2.CommitRecordsResponse, answer)
