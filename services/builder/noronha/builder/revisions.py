"""Builds as Metadata holds them: how they are named here, and read."""

from __future__ import annotations

import json
from collections.abc import Sequence

from google.protobuf import field_mask_pb2

from noronha.chassis import principals
from noronha.chassis.peers import Peers
from noronha.rpc import names
from noronha.rpc.errors import NotFound
from noronha.v1 import metadata_pb2
from noronha.v1.build_pb2 import Build
from noronha.v1.task_status_pb2 import TaskStatus

_ENDED = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED})


def has_ended(build: Build) -> bool:
    """Says whether a build will not change any more."""
    return build.status.state in _ENDED


def full_name(build: Build) -> str:
    """Returns the name of one revision."""
    return f"{build.name}@{build.revision}"


def written(build: Build) -> str:
    """Returns how people write one revision: ``project:tag@revision``."""
    return ":".join(names.parse(build.name, "build").ids) + f"@{build.revision}"


def reference_of(build: Build) -> str:
    """Returns what tells this revision from those of all tenants: the present tenant and its full name."""
    return f"{principals.current().tenant} {full_name(build)}"


async def get(peers: Peers, name: str) -> Build:
    """Returns a build. Raises NotFound."""
    build: Build = await peers.metadata.GetBuild(metadata_pb2.GetBuildRequest(name=name))
    return build


async def all_of(peers: Peers, name: str, limit: int = 1000) -> Sequence[Build]:
    """Returns the revisions of a build, newest first, without what takes room."""
    page = await peers.metadata.ListBuilds(
        metadata_pb2.ListBuildsRequest(
            parent=names.parent_of(names.parse(name, "build")),
            filter=json.dumps({"name": name}),
            all_revisions=True,
            page_size=limit,
            read_mask=field_mask_pb2.FieldMask(paths=["name", "revision", "status", "create_time", "etag"]),
        )
    )
    builds: Sequence[Build] = page.builds
    return builds


async def named(peers: Peers, name: str) -> Build:
    """Returns the revision that is named, or the newest, whether it succeeded or not. Raises NotFound."""
    parsed = names.parse(name, "build")
    if parsed.revision is not None:
        return await get(peers, name)
    found = await all_of(peers, parsed.bare, 1)
    if not found:
        raise NotFound(f"{name} does not exist", name=name)
    return found[0]


async def unended(peers: Peers) -> list[Build]:
    """Returns every build of every project that has not ended."""
    found: list[Build] = []
    token = ""
    while True:
        page = await peers.metadata.ListBuilds(
            metadata_pb2.ListBuildsRequest(
                parent="projects/-",
                filter=json.dumps({"status.state": {"$in": ["PENDING", "RUNNING"]}}),
                all_revisions=True,
                page_size=100,
                page_token=token,
            )
        )
        found += page.builds
        token = page.next_page_token
        if not token:
            return found
