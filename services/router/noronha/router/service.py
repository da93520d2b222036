"""Router's gRPC: traffic, waiting for routes, the state of the proxy; and the mounting of all its parts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from google.protobuf import empty_pb2, field_mask_pb2

from noronha.chassis import principals, request_ids
from noronha.chassis.durations import seconds_of
from noronha.chassis.mount import Context
from noronha.chassis.peers import Peers
from noronha.chassis.principals import Kind, Principal
from noronha.chassis.timestamps import now
from noronha.chassis.together import together
from noronha.router import discovery as discovery_module
from noronha.router import envoy as envoy_module
from noronha.router import traffic as rules
from noronha.router.bootstrap import bootstrap
from noronha.router.discovery import Discovery
from noronha.router.edge import Edge
from noronha.router.envoy import ADMIN_SOCKET, UPDATE_SOCKET, Envoy
from noronha.router.follow import Follower
from noronha.router.proxy import Proxy, occupied
from noronha.router.resource_names import LISTENER
from noronha.router.update import UpdateServer
from noronha.rpc import names
from noronha.rpc.addresses import check_socket_path
from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from noronha.v1 import metadata_pb2, records_pb2, resource_pb2, router_pb2, router_pb2_grpc, traffic_pb2

if TYPE_CHECKING:
    from noronha.router.ads import AdsStream

WAIT = 10.0
"""Seconds that the proxy has to take a change when the caller does not say."""

MAX_WAIT = 300.0

SETTLE = 0.1
"""Seconds between Envoy's acknowledgement and the moment its worker threads have all taken the change over."""


class RouterServicer(router_pb2_grpc.RouterServicer):
    """Answers for the proxies that follow this Router."""

    def __init__(self, peers: Peers, discovery: Discovery, address: str, envoy: Envoy | None) -> None:
        self._peers = peers
        self._discovery = discovery
        self._address = address
        self._envoy = envoy

    async def UpdateTraffic(self, request: router_pb2.UpdateTrafficRequest, context: Any) -> traffic_pb2.Traffic:
        """Sets traffic and waits until the proxy has taken it."""
        name = names.parse(request.traffic.name, "traffic", field="traffic.name").bare
        deployment = name.removesuffix("/traffic")
        await self._peers.metadata.GetDeployment(metadata_pb2.GetDeploymentRequest(name=deployment))
        record = await self._write(request, name, deployment)
        asked = rules.asked(record)
        current = await self._find(name)
        if current is None or rules.asked(current) != asked:
            return record  # changed again since: a repeat is answered as the first time, and that change for itself
        taken = await self._told(deployment, lambda part: part is not None and part.traffic == asked)
        rejection = self._rejection(deployment)
        if current.etag != record.etag:
            record = current  # a repeat, of what is there still
        elif taken or rejection:
            changed = traffic_pb2.Traffic(name=name, rejection=rejection)
            if not rejection:
                changed.accept_time.CopyFrom(now())
            with contextlib.suppress(Aborted, NotFound):  # changed again meanwhile: that change speaks for itself
                record = await self._update(changed, ["rejection", "accept_time"])
        if rejection:
            raise FailedPrecondition(
                f"the proxy refused the traffic of {deployment}: {rejection}", reason="PROXY_REJECTED", name=name
            )
        if not taken:
            raise self._late(f"the traffic of {deployment} is recorded, but the proxy has not taken it yet")
        return record

    async def DeleteTraffic(self, request: router_pb2.DeleteTrafficRequest, context: Any) -> empty_pb2.Empty:
        """Takes traffic back to the default and waits until the proxy has taken it."""
        name = names.parse(request.name, "traffic").bare
        deployment = name.removesuffix("/traffic")
        await self._peers.metadata.GetDeployment(metadata_pb2.GetDeploymentRequest(name=deployment))
        with contextlib.suppress(NotFound):
            await self._peers.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=name, etag=request.etag))
        if not await self._told(deployment, lambda part: part is None or not part.traffic):
            raise self._late(f"the traffic of {deployment} is the default again, but the proxy has not taken that yet")
        return empty_pb2.Empty()

    async def WaitForRoutes(
        self, request: router_pb2.WaitForRoutesRequest, context: Any
    ) -> router_pb2.WaitForRoutesResponse:
        """Waits until every connected proxy holds, or no longer holds, the named replicas."""
        deployment = names.parse(request.deployment, "deployment", field="deployment").bare
        present, absent = frozenset(request.present), frozenset(request.absent)
        for name in present | absent:
            names.parse(name, "replica", field="replica")
        wait = seconds_of(request.timeout) if request.HasField("timeout") else WAIT
        if not 0 <= wait <= MAX_WAIT:
            raise InvalidArgument(
                f"timeout must be 0 to {MAX_WAIT:.0f} seconds, not {wait}",
                violations=[("timeout", f"must be 0 to {MAX_WAIT:.0f} seconds")],
            )

        def in_step(stream: AdsStream) -> bool:
            held = stream.replicas(deployment)
            if held is None or not present <= held or absent & held:
                return False
            snapshot = stream.snapshot
            part = snapshot.parts.get(deployment) if snapshot is not None else None
            if part is None or part.listener is None:
                return True
            return stream.accepts(LISTENER, deployment) or bool(stream.refusal(LISTENER, deployment))

        if not await self._all(in_step, wait):
            raise self._late(f"the proxy did not take the routes of {deployment} within {wait:g} s")
        await asyncio.sleep(SETTLE)
        return router_pb2.WaitForRoutesResponse(port_error=self._port_error(deployment))

    async def GetProxy(self, request: router_pb2.GetProxyRequest, context: Any) -> router_pb2.Proxy:
        """Returns the state of the proxy."""
        snapshot = self._discovery.snapshot
        rejections = {
            f"{name}: {why}" for stream in self._discovery.streams for name, why in sorted(stream.refused.items())
        }
        if snapshot is not None:
            rejections |= {f"{name}: {why}" for name, part in snapshot.parts.items() for why in part.problems}
        return router_pb2.Proxy(
            address=self._address,
            connected=bool(self._discovery.streams),
            process_id=(self._envoy.pid() or 0) if self._envoy is not None else 0,
            version=envoy_module.release(),
            deployments=len(snapshot.parts) if snapshot is not None else 0,
            rejections=sorted(rejections)[:1000],
        )

    # ------------------------------------------------------------------------------------------------- workings

    async def _write(self, request: router_pb2.UpdateTrafficRequest, name: str, deployment: str) -> traffic_pb2.Traffic:
        """Writes the record: what is there with the request's fields put over it. A repeat is answered as before."""
        once: Any = {
            "request_id": request_ids.check(request.request_id),
            "request_fingerprint": request_ids.fingerprint(request, principals.current()),
        }
        for _ in range(5):
            before = await self._find(name)
            merged = _merged(before, request, name)
            await self._check(merged, deployment)
            try:
                if before is None and not request.traffic.etag:
                    created = await self._peers.records.CreateRecord(
                        records_pb2.CreateRecordRequest(resource=resource_pb2.Resource(traffic=merged), **once)
                    )
                    return _traffic(created)
                merged.etag = request.traffic.etag or (before.etag if before is not None else "")
                return await self._update(merged, ["targets", "sticky_key", "rejection"], **once)
            except AlreadyExists as error:
                if error.reason == "REQUEST_ID_REUSED":
                    raise
            except (Aborted, NotFound):
                if request.traffic.etag:
                    break
        raise Aborted(f"{name} has changed since it was read; read it again", reason="STALE_ETAG", name=name)

    async def _find(self, name: str) -> traffic_pb2.Traffic | None:
        try:
            found = await self._peers.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=name))
        except NotFound:
            return None
        return cast(traffic_pb2.Traffic, found)

    async def _update(self, record: traffic_pb2.Traffic, paths: list[str], **once: Any) -> traffic_pb2.Traffic:
        written = await self._peers.records.UpdateRecord(
            records_pb2.UpdateRecordRequest(
                resource=resource_pb2.Resource(traffic=record),
                update_mask=field_mask_pb2.FieldMask(paths=paths),
                **once,
            )
        )
        return _traffic(written)

    async def _check(self, record: traffic_pb2.Traffic, deployment: str) -> None:
        if found := rules.violations(record):
            path, why = found[0]
            raise InvalidArgument(f"{path} {why}", reason="BAD_TRAFFIC", violations=found)
        for revision in sorted({target.revision for target in record.targets if target.revision}):
            await self._peers.metadata.GetDeploymentRevision(
                metadata_pb2.GetDeploymentRevisionRequest(name=f"{deployment}/revisions/{revision}")
            )

    async def _told(self, deployment: str, condition: Any) -> bool:
        return await self._all(
            lambda stream: condition(stream.routes(deployment)) or bool(self._rejection(deployment)), WAIT
        )

    async def _all(self, condition: Any, timeout: float) -> bool:
        """Waits until a condition holds for every connected proxy, and there is one."""
        streams = self._discovery

        def holds() -> bool:
            return bool(streams.streams) and all(condition(each) for each in streams.streams)

        return await streams.until(holds, timeout)

    def _rejection(self, deployment: str) -> str:
        for stream in self._discovery.streams:
            if why := stream.route_refusal(deployment):
                return why
        return ""

    def _late(self, message: str) -> FailedPrecondition | DeadlineExceeded:
        if not self._discovery.streams:
            return FailedPrecondition(
                f"{message}: no proxy runs; see `nha mesh status`", reason="PROXY_DOWN", address=self._address
            )
        return DeadlineExceeded(message, reason="ROUTES_LATE")

    def _port_error(self, deployment: str) -> str:
        snapshot = self._discovery.snapshot
        part = snapshot.parts.get(deployment) if snapshot is not None else None
        if part is None:
            return ""
        if part.port_problem:
            return part.port_problem
        for stream in self._discovery.streams:
            if why := stream.refusal(LISTENER, deployment):
                return f"port {part.port} cannot be listened to: {why}"
        return ""


def _merged(
    before: traffic_pb2.Traffic | None, request: router_pb2.UpdateTrafficRequest, name: str
) -> traffic_pb2.Traffic:
    """Puts the fields of the request that its mask chooses over what is there. Raises InvalidArgument."""
    wanted, paths = request.traffic, list(request.update_mask.paths)
    known = ["targets", "sticky_key"]
    if not paths:
        paths = [path for path in known if getattr(wanted, path)]
    elif paths == ["*"]:
        paths = known
    if unknown := [path for path in paths if path not in known]:
        raise InvalidArgument(
            f"update_mask names {unknown[0]!r}; of traffic, {' and '.join(known)} can be changed",
            reason="BAD_MASK",
            violations=[("update_mask", f"{path!r} cannot be changed") for path in unknown],
        )
    merged = traffic_pb2.Traffic(name=name)
    for path in known:
        source = wanted if path in paths else before
        if source is None:
            continue
        if path == "targets":
            merged.targets.extend(source.targets)
        else:
            merged.sticky_key = source.sticky_key
    return merged


def _traffic(record: records_pb2.Record) -> traffic_pb2.Traffic:
    return record.resource.traffic


@contextlib.asynccontextmanager
async def mount(server: Any, context: Context) -> AsyncIterator[list[str]]:
    """Mounts Router and Envoy's discovery, and keeps Envoy running while the server does.

    Envoy stays when the server stops, as long as there are deployments; the next server finds it again.
    """
    settings = context.settings.router
    folder = context.state_dir("router")
    address = f"{settings.host}:{settings.port}"
    context.router_address = address
    discovery = Discovery()
    discovery_module.add(discovery, server)
    admin, updates = folder / ADMIN_SOCKET, folder / UPDATE_SOCKET
    token = context.tokens.mint(Principal(Kind.SERVICE, "envoy"))
    envoy = Envoy(
        folder,
        bootstrap(
            mesh_address=context.address,
            token=token,
            admin_socket=str(admin),
            mesh_id=context.mesh_id,
            release=envoy_module.release(),
        ),
        settings.concurrency or min(2, os.cpu_count() or 1),
    )
    servicer = RouterServicer(context.peers, discovery, address, envoy if settings.native else None)
    router_pb2_grpc.add_RouterServicer_to_server(servicer, server)

    def say(serving: bool, problem: str) -> None:
        context.set_serving("router", serving, problem)

    edge = Edge(settings.host, settings.port, str(updates), settings.request_timeout)
    if settings.native and not envoy.running():
        # It serves once Envoy listens. What stands in its way is told at once; Envoy finds out only later.
        say(False, occupied(edge))
    proxy = Proxy(envoy, discovery, edge, say)
    context.stop_with_tasks(proxy.stop)

    async def run() -> None:
        work = [Follower(context.peers, discovery, edge).run(), proxy.judge()]
        if settings.native:
            work.append(proxy.keep())
        await together(work)

    def ready(deployment: str) -> Any:
        return discovery.snapshot.ready.get(deployment) if discovery.snapshot is not None else ()

    update = UpdateServer(updates, ready)
    try:
        check_socket_path(updates)
    except FailedPrecondition as error:
        say(False, error.message)
    else:
        await update.start()
        context.background(run, "router")

    async def close() -> None:
        await context.stopping.wait()
        discovery.close()

    closing = asyncio.create_task(close())
    try:
        yield ["noronha.v1.Router", discovery_module.SERVICE]
    finally:
        closing.cancel()
        await update.close()
        # An Envoy that routes nothing would be looked after by nobody.
        if envoy.started if discovery.snapshot is None else not discovery.snapshot.parts:
            await envoy.stop()
