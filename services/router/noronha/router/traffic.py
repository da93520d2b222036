"""Rules of traffic: what may be asked for, and which revisions get which requests of a deployment."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from noronha.v1 import traffic_pb2

MAX_TARGETS = 100
MAX_WEIGHT = 1_000_000
MAX_VALUE_LENGTH = 1024

# Names of headers as HTTP defines them, in lower case since HTTP/2 knows no other.
_HEADER = re.compile(r"[a-z0-9!#$&'*+.^_`|~-]{1,256}")
_QUERY_PARAMETER = re.compile(r"[A-Za-z0-9_.~-]{1,256}")
_VALUE = re.compile(r"[\x20-\x7e]*")

# Headers that the proxy takes away from every request before it looks at them, so a match on one could never come true.
RESERVED_HEADERS = ("x-envoy-", "x-nha-")


@dataclass(frozen=True)
class Split:
    """How the requests of one deployment are shared, with every revision resolved to one that has ready replicas."""

    weights: tuple[tuple[int, int], ...]
    """Pairs of revision and weight; never empty, weights above zero."""
    headers: tuple[tuple[tuple[tuple[str, str], ...], int], ...] = ()
    """Pairs of header matches, themselves sorted pairs of name and value, and the revision that gets such requests."""
    mirrors: tuple[tuple[int, float], ...] = ()
    """Pairs of revision and the percentage of requests that is also sent there."""
    sticky_key: str = ""
    """Header, or query parameter written `?name`, that keeps a caller on one replica; empty means none."""


def asked(traffic: traffic_pb2.Traffic) -> bytes:
    """Returns what the traffic asks for, without what only its record has; equal bytes make equal routes."""
    only = traffic_pb2.Traffic(targets=traffic.targets, sticky_key=traffic.sticky_key)
    return only.SerializeToString(deterministic=True)


def violations(traffic: traffic_pb2.Traffic) -> list[tuple[str, str]]:
    """Lists what is wrong with the traffic as pairs of field path and reason; an empty list means nothing."""
    found: list[tuple[str, str]] = []
    if len(traffic.targets) > MAX_TARGETS:
        found.append(("targets", f"has {len(traffic.targets)} entries, at most {MAX_TARGETS} are allowed"))
    for index, target in enumerate(traffic.targets[:MAX_TARGETS]):
        found += [(f"targets[{index}].{path}", why) for path, why in _target_violations(target)]
    weighted = [target for target in traffic.targets if not target.header_matches and target.weight > 0]
    if traffic.targets and not weighted:
        found.append(("targets", "must hold one with a weight above 0, for requests that match no headers"))
    key = traffic.sticky_key
    if key.startswith("?"):
        if not _QUERY_PARAMETER.fullmatch(key[1:]):
            found.append(("sticky_key", "must name a query parameter after `?`: letters, digits, `_`, `.`, `~`, `-`"))
    elif key and (why := _header_violation(key)):
        found.append(("sticky_key", why))
    return found


def split(traffic: traffic_pb2.Traffic | None, ready: Collection[int], serving: int) -> Split | None:
    """Decides which revisions get the requests of a deployment.

    `ready` are the revisions with ready replicas, `serving` the newest one whose replicas were all ready at once (0:
    not known). None means that no revision can serve. A target whose revision has no ready replica is left out:
    predictions that succeed are worth more than the exact shares; with no target left, the default gets everything.
    Traffic that breaks the rules counts as absent, since one bad record must not take the deployment down.
    """
    if not ready:
        return None
    newest = serving if serving in ready else max(ready)
    default = Split(weights=((newest, 1),))
    if traffic is None or not (traffic.targets or traffic.sticky_key) or violations(traffic):
        return default
    weights: dict[int, int] = {}
    headers: dict[tuple[tuple[str, str], ...], int] = {}
    mirrors: dict[int, float] = {}
    for target in traffic.targets:
        revision = target.revision or newest
        if revision not in ready:
            continue
        if target.header_matches:
            headers.setdefault(tuple(sorted(target.header_matches.items())), revision)
        elif target.weight:
            weights[revision] = weights.get(revision, 0) + target.weight
        if target.mirror_percent:
            mirrors[revision] = max(mirrors.get(revision, 0.0), target.mirror_percent)
    return Split(
        weights=tuple(sorted(weights.items())) or default.weights,
        headers=tuple(headers.items()),
        mirrors=tuple(sorted(mirrors.items())),
        sticky_key=traffic.sticky_key,
    )


def _target_violations(target: traffic_pb2.TrafficTarget) -> list[tuple[str, str]]:
    found = []
    if target.revision < 0:
        found.append(("revision", f"is {target.revision}, must be 0 (the newest ready one) or a revision's number"))
    if not 0 <= target.weight <= MAX_WEIGHT:
        found.append(("weight", f"is {target.weight}, must be 0 to {MAX_WEIGHT}"))
    if not math.isfinite(target.mirror_percent) or not 0 <= target.mirror_percent <= 100:
        found.append(("mirror_percent", f"is {target.mirror_percent}, must be 0 to 100"))
    if target.header_matches and target.weight:
        found.append(("weight", "must be 0 for a target with header matches, which gets all requests that match"))
    for name, value in sorted(target.header_matches.items()):
        if why := _header_violation(name):
            found.append(("header_matches", why))
        if len(value) > MAX_VALUE_LENGTH or not _VALUE.fullmatch(value):
            found.append(("header_matches", f"has a value for {name[:64]!r} that is not printable ASCII of at most "
                                            f"{MAX_VALUE_LENGTH} characters"))  # fmt: skip
    return found


def _header_violation(name: str) -> str:
    if not _HEADER.fullmatch(name):
        return f"names {name[:64]!r}, which is not a header's name in lower case"
    if name.startswith(RESERVED_HEADERS):
        return f"names {name[:64]!r}, but headers with {' or '.join(RESERVED_HEADERS)} are taken off requests"
    return ""
