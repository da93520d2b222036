"""One proxy's conversation with Router, as the protocol rules it (aggregated discovery, state of the world).

No sockets, no clock, no tasks: `heard` takes what the proxy said, `saw` a new snapshot, and both return the
answers to send, serialised. What makes the order matter:

- A route must never name a cluster that the proxy does not have. New clusters go first, then their endpoints,
  then listeners and routes. Clusters that no longer exist go last, once the proxy has acknowledged routes without
  them.
- The proxy acknowledges clusters only when all new ones are ready, which takes until their endpoints have
  answered a probe or not. One busy replica would hold up everybody's routes, so a new cluster is first told that
  it has no endpoints, is acknowledged at once, and is told its endpoints then.
- The version of an answer is the hash of its content, so that nothing is sent twice, and a proxy that comes
  back to a restarted Router, or to another one, is left alone when nothing has changed.
- What the proxy refuses (a listener whose port is taken, say) stays as it was and is reported; the rest goes on.
  It is offered again when it changes or, for listeners, when `retry` is called. When the proxy does not say which
  one it refuses (the route table is one resource), what changed is tried in halves until the bad one is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from noronha.router import splice
from noronha.router.messages import DiscoveryRequest, DiscoveryResponse, number
from noronha.router.resource_names import CLUSTER, ENDPOINTS, LISTENER, ROUTE_TABLE, ROUTES
from noronha.router.resources import assignment
from noronha.router.snapshot import Item, Part, Snapshot, digest, item, route_table

ORDER = (CLUSTER, ENDPOINTS, LISTENER, ROUTES)
"""The types of resources in the order in which a change is told."""

WILDCARD = (CLUSTER, LISTENER)
"""The types of which a proxy gets all, instead of those it names."""

T = TypeVar("T")

_VERSION = number(DiscoveryResponse, "version_info")
_RESOURCES = number(DiscoveryResponse, "resources")
_TYPE_URL = number(DiscoveryResponse, "type_url")
_NONCE = number(DiscoveryResponse, "nonce")


@dataclass
class _Channel:
    """What is known about one type of resource on one stream."""

    url: str
    asked: bool = False
    names: tuple[str, ...] = ()
    """What the proxy wants, of types that it asks for by name."""
    nonce: str = ""
    version: str = ""
    """Version of the last answer."""
    open: dict[str, Item] | None = None
    """What the unanswered answer holds; None when the proxy has answered everything."""
    sent: dict[str, bytes] = field(default_factory=dict)
    """Digest of what was last sent of each name."""
    accepted: dict[str, Item] = field(default_factory=dict)
    """What the proxy is known to use."""
    refused: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """What the proxy refused: digest and reason; of the route table, by deployment."""
    batch: int = 0
    """How many changes go into the next answer, while a refused one is searched for; 0 means all of them."""

    def refuses(self, name: str, found: bytes) -> bool:
        return name in self.refused and self.refused[name][0] == found

    def differs(self, name: str, found: bytes) -> bool:
        return name not in self.accepted or self.accepted[name].digest != found

    def staged(self, wanted: Mapping[str, T], held: Mapping[str, T], digest_of: Callable[[T], bytes]) -> dict[str, T]:
        """Returns what to send of what is wanted: what is refused, or put off, stays as the proxy holds it."""
        found: dict[str, T] = {}
        left = self.batch or len(wanted)
        for name, each in wanted.items():
            content = digest_of(each)
            if name not in held or digest_of(held[name]) != content:
                if left and not self.refuses(name, content):
                    left -= 1
                elif name in held:
                    each = held[name]
                else:
                    continue
            found[name] = each
        if left:
            self.batch = 0
        return found


class AdsStream:
    """The state of one stream. `snapshot` may be None: then nothing is said until `saw` brings the first one."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.snapshot = snapshot
        self._channels = {url: _Channel(url) for url in ORDER}
        self._nonces = 0
        self._routed: Mapping[str, Part] = {}
        """Deployments whose entries are in the route table that the proxy has acknowledged."""
        self._routing: Mapping[str, Part] | None = None
        """The same of a table that it was sent and has not answered."""
        self._warm: set[str] = set()
        """Clusters that the proxy has: telling one of them that it has no endpoints would be true at once."""

    # ------------------------------------------------------------------------------------------------- events

    def heard(self, request: DiscoveryRequest) -> list[bytes]:
        """Takes a request of the proxy: a subscription, an acknowledgement or a refusal."""
        channel = self._channels.get(request.type_url)
        if channel is None:
            return []  # a type that Router has nothing of
        if not channel.asked:
            channel.asked = True
            self._resume(channel, request.version_info)
            if channel.url == ENDPOINTS and request.version_info:
                self._warm.update(request.resource_names)
        elif request.response_nonce != channel.nonce:
            return []  # speaks of an answer that a newer one has overtaken
        elif channel.open is not None:
            self._answered(channel, request.error_detail.message if request.error_detail else None)
        channel.names = tuple(request.resource_names)
        if channel.url not in WILDCARD:
            for name in channel.sent.keys() - set(channel.names):
                del channel.sent[name]
                channel.accepted.pop(name, None)
        return self._due()

    def saw(self, snapshot: Snapshot) -> list[bytes]:
        """Takes a new snapshot."""
        self.snapshot = snapshot
        return self._due()

    def retry(self) -> list[bytes]:
        """Offers refused listeners again, since their ports may be free by now; to be called from time to time."""
        channel = self._channels[LISTENER]
        if channel.refused and channel.open is None:
            channel.refused.clear()
            channel.version = ""
        return self._due()

    # -------------------------------------------------------------------------------------------------- state

    @property
    def refused(self) -> dict[str, str]:
        """What the proxy refused and why, by resource name; entries of the route table by deployment."""
        return {name: why for each in self._channels.values() for name, (_, why) in each.refused.items()}

    def refusal(self, url: str, name: str) -> str:
        """Says why the proxy refused a resource; empty when it did not."""
        return self._channels[url].refused.get(name, (b"", ""))[1]

    def route_refusal(self, deployment: str) -> str:
        """Says why the proxy refused a deployment's entry in the route table; empty when it did not."""
        return self.refusal(ROUTES, deployment)

    def accepts(self, url: str, name: str) -> bool:
        """Tells whether the proxy has acknowledged a resource as the present snapshot has it."""
        if self.snapshot is None:
            return False
        wanted, accepted = self._wanted(url).get(name), self._channels[url].accepted.get(name)
        return wanted is not None and accepted is not None and accepted.digest == wanted.digest

    def routes(self, deployment: str) -> Part | None:
        """Returns the state of a deployment that the proxy's routes follow; None when they do not know it."""
        if self._deaf and self.snapshot is not None:
            return self.snapshot.parts.get(deployment)
        return self._routed.get(deployment)

    def replicas(self, deployment: str) -> frozenset[str] | None:
        """Returns the replicas that the proxy may send a deployment's requests to; None while not known."""
        if self.snapshot is None:
            return None
        part = self.routes(deployment)
        if part is None:
            return frozenset() if deployment not in self.snapshot.parts else None
        accepted = self._channels[ENDPOINTS].accepted
        if any(name not in accepted for name in part.clusters):
            return None
        return frozenset[str]().union(*(accepted[name].members for name in part.clusters))

    @property
    def settled(self) -> bool:
        """Tells whether the proxy has acknowledged all of the present snapshot, save what it refused."""
        if self.snapshot is None or any(each.open is not None for each in self._channels.values()):
            return False
        if any(each.batch for each in self._channels.values()):
            return False
        return self._routes_are_told() or self._deaf or self.accepts(ROUTES, ROUTE_TABLE)

    @property
    def _deaf(self) -> bool:
        """Tells whether the proxy refused every listener, so that it asks for no routes and gets no requests."""
        channel = self._channels[LISTENER]
        return channel.asked and channel.open is None and bool(channel.refused) and not channel.accepted

    # ----------------------------------------------------------------------------------------------- workings

    def _resume(self, channel: _Channel, version: str) -> None:
        """Takes up a conversation that the proxy had with a Router before."""
        if self.snapshot is None or not version or channel.url not in WILDCARD:
            return
        wanted = self._wanted(channel.url)
        if _version(wanted.values()) == version:
            channel.version = version
            channel.sent = {name: each.digest for name, each in wanted.items()}
            channel.accepted = dict(wanted)
            if channel.url == CLUSTER:
                self._warm = set(wanted)

    def _answered(self, channel: _Channel, error: str | None) -> None:
        held, channel.open = channel.open or {}, None
        if channel.url == ROUTES:
            self._routes_answered(channel, held, error)
            return
        bad: set[str] = set()
        if error is not None:
            bad = {name for name in held if _mentions(error, name)}
            if not bad:
                changed = [name for name, each in held.items() if channel.differs(name, each.digest)]
                if len(changed) > 1:
                    channel.batch, channel.version = len(changed) // 2, ""
                    return
                if not changed:
                    channel.refused[channel.url] = b"", _one_line(error)
                    return
                bad = set(changed)
            for name in bad:
                if channel.differs(name, held[name].digest):
                    channel.refused[name] = held[name].digest, _about(error, name)
                else:
                    del channel.accepted[name]  # what it had before it will not have again either
            channel.version = ""
        channel.batch *= 2
        good = {name: each for name, each in held.items() if name not in bad}
        if channel.url in WILDCARD:
            channel.accepted = good | {name: channel.accepted[name] for name in bad & channel.accepted.keys()}
        else:
            channel.accepted.update(good)
        if channel.url == CLUSTER:
            self._warm = set(good)
        wanted = self._wanted(channel.url)
        for name in [name for name in channel.refused if name in good]:
            if name not in wanted or wanted[name].digest == good[name].digest:
                del channel.refused[name]
        channel.refused.pop(channel.url, None)

    def _routes_answered(self, channel: _Channel, held: dict[str, Item], error: str | None) -> None:
        routing, self._routing = self._routing or {}, None
        changed = [name for name, part in routing.items() if self._entry_differs(name, part)]
        if error is None:
            channel.accepted.update(held)
            self._routed = routing
            channel.batch *= 2
            for name in changed:
                channel.refused.pop(name, None)
        elif len(changed) == 1:
            channel.refused[changed[0]] = routing[changed[0]].entry.digest, _one_line(error)
        elif changed:
            channel.batch = len(changed) // 2
        else:
            channel.refused[ROUTE_TABLE] = b"", _one_line(error)

    def _entry_differs(self, name: str, part: Part) -> bool:
        return name not in self._routed or self._routed[name].entry.digest != part.entry.digest

    def _plan(self) -> Mapping[str, Part]:
        """Returns the deployments that the next route table is made of.

        These are the snapshot's, save that an entry which was refused, or is put off while a refused one is
        searched for, stays as the proxy has it.
        """
        assert self.snapshot is not None
        channel = self._channels[ROUTES]
        if not channel.batch and not channel.refused:
            return self.snapshot.parts
        return channel.staged(self.snapshot.parts, self._routed, lambda part: part.entry.digest)

    def _wanted(self, url: str) -> Mapping[str, Item]:
        """Returns what the proxy should have of a type at this moment of the conversation."""
        snapshot = self.snapshot
        assert snapshot is not None
        if url == LISTENER:
            return snapshot.listeners
        if url == ENDPOINTS:
            return snapshot.endpoints
        if url == ROUTES:
            plan = self._plan()
            return snapshot.routes if plan is snapshot.parts else {ROUTE_TABLE: route_table(plan)}
        # Clusters that the proxy's routes may still name stay until they no longer do.
        old: dict[str, Item] = {}
        for parts in (self._routed, self._routing or {}):
            for name, part in parts.items():
                if snapshot.parts.get(name) is not part:
                    old.update(part.clusters)
        for name, part in snapshot.parts.items():
            if part.retiring and self._routed.get(name) is not part:
                old.update(part.retiring)
        return {**old, **snapshot.clusters} if old else snapshot.clusters

    def _routes_are_told(self) -> bool:
        return self.snapshot is not None and self._routed is self.snapshot.parts

    def _clusters_are_told(self) -> bool:
        """Tells whether the proxy has all clusters, and their endpoints are at least on the way to it."""
        clusters, endpoints = self._channels[CLUSTER], self._channels[ENDPOINTS]
        if clusters.open is not None:
            return False
        wanted = self._wanted(ENDPOINTS)
        return all(
            endpoints.sent.get(name) == wanted[name].digest or endpoints.refuses(name, wanted[name].digest)
            for name in endpoints.names
            if name in wanted
        )

    def _due(self) -> list[bytes]:
        """Returns the answers that are due now, in the order that keeps routes and clusters consistent."""
        if self.snapshot is None:
            return []
        found: list[bytes] = []
        for url in ORDER:
            channel = self._channels[url]
            if url == LISTENER and not self._clusters_are_told():
                break
            if not channel.asked or channel.open is not None:
                continue
            if url == ROUTES:
                answer = self._table(channel)
            else:
                answer = self._all(channel) if url in WILDCARD else self._named(channel)
            if answer is not None:
                found.append(answer)
        return found

    def _all(self, channel: _Channel) -> bytes | None:
        """Answers with every resource of a type, if anything differs from what was last sent."""
        wanted = self._wanted(channel.url)
        items = channel.staged(wanted, channel.accepted, lambda each: each.digest)
        for name in channel.refused.keys() - wanted.keys() - {channel.url}:
            del channel.refused[name]
        version = _version(items.values())
        if version == channel.version:
            return None
        if channel.url == CLUSTER:
            endpoints = self._channels[ENDPOINTS]
            for name, each in items.items():
                if channel.sent.get(name, each.digest) != each.digest:
                    # A cluster that changed is made anew, and waits to be told its endpoints once more.
                    endpoints.sent.pop(name, None)
        return self._answer(channel, items, version)

    def _named(self, channel: _Channel) -> bytes | None:
        """Answers with those resources that the proxy asked for and does not have in this state."""
        wanted = self._wanted(channel.url)
        clusters = self._channels[CLUSTER]
        items = {}
        for name in channel.names:
            found = wanted.get(name)
            forgotten = found is None and name not in channel.sent  # waiting for it would hold up the rest
            if forgotten or (clusters.open is not None and name in clusters.open and name not in self._warm):
                found = item(assignment(name, ()))
            if found is None or channel.sent.get(name) == found.digest:
                continue
            if not channel.refuses(name, found.digest):
                items[name] = found
        return self._answer(channel, items, _version(wanted.values())) if items else None

    def _table(self, channel: _Channel) -> bytes | None:
        """Answers with the route table, unless the proxy has this very table."""
        assert self.snapshot is not None
        if ROUTE_TABLE not in channel.names:
            return None
        plan = self._plan()
        found = self.snapshot.routes[ROUTE_TABLE] if plan is self.snapshot.parts else route_table(plan)
        accepted = channel.accepted.get(ROUTE_TABLE)
        if accepted is not None and accepted.digest == found.digest:
            if self._routed is not plan:
                self._routed = plan
                clusters = self._channels[CLUSTER]
                return self._all(clusters) if clusters.asked and clusters.open is None else None
            return None
        self._routing = plan
        return self._answer(channel, {ROUTE_TABLE: found}, _version([found]))

    def _answer(self, channel: _Channel, items: dict[str, Item], version: str) -> bytes:
        self._nonces += 1
        channel.nonce, channel.version, channel.open = str(self._nonces), version, items
        digests = {name: each.digest for name, each in items.items()}
        channel.sent = digests if channel.url in WILDCARD else {**channel.sent, **digests}
        return (
            splice.field(_VERSION, version.encode())
            + splice.fields(_RESOURCES, [each.data for each in items.values()])
            + splice.field(_TYPE_URL, channel.url.encode())
            + splice.field(_NONCE, channel.nonce.encode())
        )


def _version(items: Iterable[Item]) -> str:
    return digest(*sorted(each.digest for each in items)).hex()


def _mentions(error: str, name: str) -> bool:
    """Tells whether an error speaks of a resource, and not of another whose name only begins or ends alike."""
    at = error.find(name)
    while at >= 0:
        before, after = error[:at][-1:], error[at + len(name) :][:2]
        inside = after[:1].isalnum() or after[:1] in ("/", "-") or (after[:1] == "." and after[1:].isalnum())
        if not inside and not before.isalnum() and before not in ("/", "-"):
            return True
        at = error.find(name, at + 1)
    return False


def _about(error: str, name: str) -> str:
    """Cuts out of an error, which may speak of several resources in turn, what it says of one."""
    at = error.find(name)
    if at >= 0:
        error = error[at + len(name) :].lstrip("': ").split("\n")[0]
    return _one_line(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
