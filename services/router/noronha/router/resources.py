"""Builds the Envoy resources of one deployment, and the frame around all of them, as serialised messages.

Importing this module imports envoy-data-plane, which takes about a second of processor time: import it where it
is needed, off the event loop. Nothing here does I/O, and nothing here knows about more than one deployment.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.cluster import v3 as cluster
from envoy_data_plane.envoy.config.common.mutation_rules import v3 as mutation
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
from envoy_data_plane.envoy.config.listener import v3 as listener
from envoy_data_plane.envoy.config.route import v3 as route
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router_filter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as manager
from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation import v3 as early
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request import v3 as least_request
from envoy_data_plane.envoy.extensions.load_balancing_policies.ring_hash import v3 as ring_hash
from envoy_data_plane.envoy.extensions.retry.host.previous_hosts import v3 as previous_hosts
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstream
from envoy_data_plane.envoy.type import v3 as types
from envoy_data_plane.envoy.type.matcher import v3 as matcher
from envoy_data_plane.xds.core import v3 as xds
from envoy_data_plane.xds.type.matcher import v3 as tree

from noronha.chassis.health_checks import completed
from noronha.router import messages, splice
from noronha.router.edge import Edge, Endpoint
from noronha.router.messages import extension, number, packed, protobuf
from noronha.router.resource_names import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    MAIN_LISTENER,
    ROUTE_LIST,
    ROUTE_TABLE,
    ROUTES,
    UPDATE_CLUSTER,
    cluster_name,
    route_key,
    sticky_name,
)
from noronha.router.traffic import RESERVED_HEADERS, Split
from noronha.v1 import health_check_pb2

# Says which deployment a request is for, as `project/deployment`. Envoy sets it from the query of each request (or,
# on a deployment's own port, to that deployment) after taking away whatever the client sent under such a name.
DEPLOYMENT_HEADER = "x-nha-deployment"
OWN_PORT_HEADER = "x-nha-own-port"

EXPECTED = "{path}?project=<project_name>&deploy=<deploy_name>"

# Fetching and loading a model may take long; what hangs for longer is cut so that it cannot hold its slot for ever.
UPDATE_TIMEOUT = datetime.timedelta(minutes=15)
# Model servers keep an idle connection for 75 s unless their settings say less, as gunicorn's own 2 s; Envoy must have
# let go of it before, or a request meets one that closes.
UPSTREAM_IDLE_TIMEOUT = datetime.timedelta(seconds=1)
CONNECT_TIMEOUT = datetime.timedelta(seconds=2)
# Envoy's own default of 1,024 looks like a slow model under load.
CIRCUIT_BREAKER = 100_000


def seconds(value: float) -> datetime.timedelta:
    """Returns a length of time."""
    return datetime.timedelta(seconds=value)


# ------------------------------------------------------------------------------------------------- clusters, endpoints


_FROM_ADS = core.ConfigSource(
    ads=core.AggregatedConfigSource(), resource_api_version=core.ApiVersion.V3, initial_fetch_timeout=seconds(5)
)
_HTTP1 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(
        upstream.HttpProtocolOptions(
            common_http_protocol_options=core.HttpProtocolOptions(idle_timeout=UPSTREAM_IDLE_TIMEOUT),
            explicit_http_config=upstream.HttpProtocolOptionsExplicitHttpConfig(
                http_protocol_options=core.Http1ProtocolOptions()
            ),
        )
    )
}
_NO_BREAKERS = cluster.CircuitBreakers(
    thresholds=[
        cluster.CircuitBreakersThresholds(
            max_connections=CIRCUIT_BREAKER,
            max_pending_requests=CIRCUIT_BREAKER,
            max_requests=CIRCUIT_BREAKER,
            max_retries=CIRCUIT_BREAKER,
        )
    ]
)
# Numbers of fields that the older release of envoy-data-plane does not know, or knows by another name.
_BODY_FORMAT = 3  # of DirectResponseAction
_PATH_REWRITE = 45  # of RouteAction
_USE_HASH_POLICY = 5  # of WeightedCluster
_REMOVE_ON_MATCH = 3  # of HeaderMutation
_KEY_MATCHER = 1  # of HeaderMutation.RemoveOnMatch
_ENFORCING_5XX = 5  # of OutlierDetection

# Only failures to connect or to get any answer eject a replica. A model answers 500 to bad data: that says nothing
# about the replica, and must not take it away from other callers.
_OUTLIERS = cluster.OutlierDetection(
    split_external_local_origin_errors=True,
    consecutive_local_origin_failure=5,
    enforcing_consecutive_local_origin_failure=100,
    enforcing_consecutive_gateway_failure=0,
    enforcing_success_rate=0,
    enforcing_local_origin_success_rate=0,
    enforcing_failure_percentage=0,
    enforcing_failure_percentage_local_origin=0,
    interval=seconds(1),
    base_ejection_time=seconds(5),
    max_ejection_time=seconds(30),
    max_ejection_percent=50,
)
messages.added(_OUTLIERS, splice.field(_ENFORCING_5XX, b""))  # a UInt32Value of zero
# With no healthy replica at all, requests go to the unhealthy ones: a server with one worker does not answer its probe
# while it predicts, and is asked again in vain at worst.
# A probe's outcome counts at once; Envoy would else gather such news for a second, and leave out replicas so long.
_BALANCING = cluster.ClusterCommonLbConfig(healthy_panic_threshold=types.Percent(value=1))
messages.added(_BALANCING, messages.duration(number(cluster.ClusterCommonLbConfig, "update_merge_window"), seconds(0)))
_LEAST_REQUEST = cluster.LoadBalancingPolicy(
    policies=[
        cluster.LoadBalancingPolicyPolicy(
            typed_extension_config=extension(
                "envoy.load_balancing_policies.least_request",
                least_request.LeastRequest(selection_method=least_request.LeastRequestSelectionMethod.FULL_SCAN),
            )
        )
    ]
)
_RING_HASH = cluster.LoadBalancingPolicy(
    policies=[
        cluster.LoadBalancingPolicyPolicy(
            typed_extension_config=extension(
                "envoy.load_balancing_policies.ring_hash",
                ring_hash.RingHash(minimum_ring_size=512, maximum_ring_size=4096),
            )
        )
    ]
)


@functools.lru_cache(maxsize=256)
def _health_checks(interval: datetime.timedelta, timeout: datetime.timedelta, retries: int) -> list[core.HealthCheck]:
    return [
        core.HealthCheck(
            timeout=timeout,
            interval=interval,
            no_traffic_interval=interval,
            unhealthy_interval=seconds(1),
            interval_jitter_percent=10,
            unhealthy_threshold=retries,
            healthy_threshold=1,
            reuse_connection=False,
            http_health_check=core.HealthCheckHttpHealthCheck(host="replica", path="/health"),
        )
    ]


def health_checks(check: health_check_pb2.HealthCheck) -> list[core.HealthCheck]:
    """Probes `/health` at the interval, and with the patience, that the deployment asks for."""
    asked = completed(check)
    interval, timeout = min(max(asked.interval, 1), 3600), min(max(asked.timeout, 0.1), 600)
    return _health_checks(seconds(interval), seconds(timeout), asked.retries)


@functools.lru_cache(maxsize=256)
def _cluster_frame(check: bytes, sticky: bool, eds: bool) -> bytes:
    """Builds all of a cluster but its name and its endpoints."""
    return bytes(
        cluster.Cluster(
            type=cluster.ClusterDiscoveryType.EDS if eds else cluster.ClusterDiscoveryType.STRICT_DNS,
            connect_timeout=CONNECT_TIMEOUT,
            load_balancing_policy=_RING_HASH if sticky else _LEAST_REQUEST,
            common_lb_config=_BALANCING,
            circuit_breakers=_NO_BREAKERS,
            outlier_detection=_OUTLIERS,
            health_checks=health_checks(health_check_pb2.HealthCheck.FromString(check)),
            ignore_health_on_host_removal=True,
            typed_extension_protocol_options=_HTTP1,
        )
    )


def replica_cluster(name: str, endpoints: Sequence[Endpoint], check: bytes, *, sticky: bool) -> bytes:
    """Builds the cluster of a revision; `check` is its serialised `HealthCheck`.

    Replicas with IP addresses come as endpoints under the same name; where one has a DNS name, Envoy resolves it, so
    the addresses are part of the cluster.
    """
    eds = by_address(endpoints)
    frame = _cluster_frame(check, sticky, eds)
    if eds:
        rest = splice.field(_EDS_CLUSTER_CONFIG, _EDS_CONFIG)
    else:
        rest = splice.field(_LOAD_ASSIGNMENT, _assignment(name, endpoints))
    return splice.any_message(CLUSTER, frame + splice.field(_CLUSTER_NAME, name.encode()) + rest)


def update_cluster(edge: Edge) -> bytes:
    """Builds the cluster of Router's own `/update` endpoint."""
    pipe = core.Address(pipe=core.Pipe(path=edge.update_socket))
    return splice.any_message(
        CLUSTER,
        bytes(
            cluster.Cluster(
                name=UPDATE_CLUSTER,
                type=cluster.ClusterDiscoveryType.STATIC,
                connect_timeout=CONNECT_TIMEOUT,
                load_assignment=endpoint.ClusterLoadAssignment(
                    cluster_name=UPDATE_CLUSTER,
                    endpoints=[
                        endpoint.LocalityLbEndpoints(
                            lb_endpoints=[endpoint.LbEndpoint(endpoint=endpoint.Endpoint(address=pipe))]
                        )
                    ],
                ),
            )
        ),
    )


def by_address(endpoints: Iterable[Endpoint]) -> bool:
    """Tells whether every host is an IP address."""
    try:
        for each in endpoints:
            ipaddress.ip_address(each.host)
    except ValueError:
        return False
    return True


def assignment(name: str, endpoints: Sequence[Endpoint]) -> bytes:
    """Builds the list of a revision's replicas."""
    return splice.any_message(ENDPOINTS, _assignment(name, endpoints))


def _assignment(name: str, endpoints: Sequence[Endpoint]) -> bytes:
    message = splice.field(_ASSIGNMENT_NAME, name.encode())
    if endpoints:
        found = []
        for each in endpoints:
            place = splice.field(_ADDRESS_HOST, each.host.encode()) + splice.number(_ADDRESS_PORT, each.port)
            for step in (_SOCKET_ADDRESS, _ENDPOINT_ADDRESS, _LB_ENDPOINT):
                place = splice.field(step, place)
            found.append(place)
        message += splice.field(_LOCALITIES, splice.fields(_LB_ENDPOINTS, found))
    return message


# --------------------------------------------------------------------------------------------------------------- routes


LAZY_KEY = "model_version"
"""Query parameter that names the version a lazy replica is to use; equal versions go to equal replicas."""


def entry(
    deployment: str, split: Split | None, sticky: Collection[int], *, own_port: bool, timeout: float
) -> bytes:
    """Builds a deployment's entry of the route table, to be put in by `table`.

    A request may take `timeout` seconds, 0 for any time. `sticky` are the revisions that also have a cluster under
    `sticky_name`. Requests that carry the traffic's sticky key, or `LAZY_KEY` in their query, go there; all others are
    balanced.
    """
    update = _UPDATE_ACTION + splice.field(_PATH_REWRITE, f"/{deployment}".encode())
    routes = [_match(path="/update") + splice.field(_ROUTE_ACTION, update)]
    # On its own port, a request is the deployment's business whatever its path.
    places = [_Place(path="/predict"), _Place(prefix="/", headers=((OWN_PORT_HEADER, None),))]
    for place in places if own_port else places[:1]:
        if split is None:
            routes.append(place.match() + _NO_REPLICA)
            continue
        for headers, revision in split.headers:
            routes += _choices(deployment, place.when(*headers), ((revision, 1),), split, sticky, timeout)
        routes += _choices(deployment, place, split.weights, split, sticky, timeout)
    return _on_match(routes)


@dataclass(frozen=True)
class _Place:
    """What a request must look like for a route."""

    path: str | None = None
    prefix: str | None = None
    headers: tuple[tuple[str, str | None], ...] = ()
    query: str | None = None

    def when(self, *headers: tuple[str, str | None]) -> _Place:
        return dataclasses.replace(self, headers=self.headers + headers)

    def match(self) -> bytes:
        return _match(self.path, self.prefix, self.headers, self.query)


@functools.lru_cache(maxsize=1024)
def _match(
    path: str | None = None,
    prefix: str | None = None,
    headers: tuple[tuple[str, str | None], ...] = (),
    query: str | None = None,
) -> bytes:
    """Builds the `match` field of a route; a header without a value must only be there."""
    message = route.RouteMatch(
        path=path,
        prefix=prefix,
        headers=[
            route.HeaderMatcher(name=name, present_match=True)
            if value is None
            else route.HeaderMatcher(name=name, string_match=matcher.StringMatcher(exact=value))
            for name, value in headers
        ],
        query_parameters=[route.QueryParameterMatcher(name=query, present_match=True)] if query else [],
    )
    return splice.field(number(route.Route, "match"), bytes(message))


@functools.lru_cache(maxsize=1024)
def _hash_policy(key: str) -> bytes:
    """Builds the `hash_policy` field of a route action for a header, or a query parameter written `?name`."""
    if key.startswith("?"):
        policy = route.RouteActionHashPolicy(query_parameter=route.RouteActionHashPolicyQueryParameter(name=key[1:]))
    else:
        policy = route.RouteActionHashPolicy(header=route.RouteActionHashPolicyHeader(header_name=key))
    return splice.field(number(route.RouteAction, "hash_policy"), bytes(policy))


def _choices(
    deployment: str,
    place: _Place,
    weights: tuple[tuple[int, int], ...],
    split: Split,
    sticky: Collection[int],
    timeout: float,
) -> list[bytes]:
    """Routes to the same revisions: first for requests with something to stick to, then for the others."""
    keys = [key for key in (split.sticky_key, f"?{LAZY_KEY}") if key]
    if not any(revision in sticky for revision, _ in weights):
        keys = [split.sticky_key] if split.sticky_key and len(weights) > 1 else []
    found = []
    for key in dict.fromkeys(keys):
        there = dataclasses.replace(place, query=key[1:]) if key.startswith("?") else place.when((key, None))
        action = _hash_policy(key) + _action(
            deployment, weights, split, sticky, timeout, by_hash=key == split.sticky_key
        )
        found.append(there.match() + splice.field(_ROUTE_ACTION, action))
    action = _action(deployment, weights, split, (), timeout, by_hash=False)
    found.append(place.match() + splice.field(_ROUTE_ACTION, action))
    return found


def _action(
    deployment: str,
    weights: tuple[tuple[int, int], ...],
    split: Split,
    sticky: Collection[int],
    timeout: float,
    *,
    by_hash: bool,
) -> bytes:
    def target(revision: int) -> str:
        return sticky_name(deployment, revision) if revision in sticky else cluster_name(deployment, revision)

    action = _predict_action(timeout)
    if len(weights) == 1:
        action += splice.field(_ACTION_CLUSTER, target(weights[0][0]).encode())
    else:
        shares = [route.WeightedClusterClusterWeight(name=target(each), weight=weight) for each, weight in weights]
        weighted = route.WeightedCluster(clusters=shares)
        if by_hash:
            messages.added(weighted, messages.true(_USE_HASH_POLICY))
        action += splice.field(number(route.RouteAction, "weighted_clusters"), bytes(weighted))
    for revision, percent in split.mirrors:
        if [revision] != [other for other, _ in weights]:  # a revision is not sent its own requests twice
            action += _mirror(cluster_name(deployment, revision), percent)
    return action


@functools.cache
def _predict_action(timeout: float) -> bytes:
    return messages.duration(number(route.RouteAction, "timeout"), seconds(timeout))


def _mirror(name: str, percent: float) -> bytes:
    fraction = types.FractionalPercent(
        numerator=round(percent * 10_000), denominator=types.FractionalPercentDenominatorType.MILLION
    )
    policy = route.RouteActionRequestMirrorPolicy(
        cluster=name,
        runtime_fraction=core.RuntimeFractionalPercent(default_value=fraction),
        disable_shadow_host_suffix_append=True,
    )
    return splice.field(number(route.RouteAction, "request_mirror_policies"), bytes(policy))


def _on_match(routes: Iterable[bytes]) -> bytes:
    """Builds what a matcher does: it tries these routes in order."""
    listed = splice.any_message(ROUTE_LIST, splice.fields(number(route.RouteList, "routes"), routes))
    action = _ROUTES_ACTION + splice.field(number(xds.TypedExtensionConfig, "typed_config"), listed)
    return splice.field(number(tree.MatcherOnMatch, "action"), action)


def table(entries: Iterable[bytes]) -> bytes:
    """Builds the route table from `splice.map_entry(route_key(...), entry(...))` of each deployment."""
    configuration, host, by_header, nobody = _table_frame()
    exact = number(tree.MatcherMatcherTree, "exact_match_map"), number(tree.MatcherMatcherTreeMatchMap, "map")
    # Envoy refuses an empty map; no request ever carries this key, which has no slash.
    entries = [splice.map_entry("nobody", nobody), *entries]
    by_header += splice.field(exact[0], splice.fields(exact[1], entries))
    matched = splice.field(number(tree.Matcher, "matcher_tree"), by_header)
    matched += splice.field(number(tree.Matcher, "on_no_match"), nobody)
    host += splice.field(number(route.VirtualHost, "matcher"), matched)
    configuration += splice.field(number(route.RouteConfiguration, "virtual_hosts"), host)
    return splice.any_message(ROUTES, configuration)


@functools.cache
def _table_frame() -> tuple[bytes, bytes, bytes, bytes]:
    """Builds what surrounds the entries: configuration, virtual host, the matcher's input, the answer to the rest."""
    read = packed(matcher.HttpRequestHeaderMatchInput(header_name=DEPLOYMENT_HEADER))
    by_header = tree.MatcherMatcherTree(input=xds.TypedExtensionConfig(name="deployment", typed_config=read))
    host = route.VirtualHost(
        name="all",
        domains=["*"],
        retry_policy=_RETRIES,
        request_headers_to_remove=[DEPLOYMENT_HEADER, OWN_PORT_HEADER],
    )
    configuration = route.RouteConfiguration(name=ROUTE_TABLE, validate_clusters=False)
    return bytes(configuration), bytes(host), bytes(by_header), _nobody()


# A prediction is repeated only where the replica has certainly not seen it, and never on the replica that failed.
_RETRIES = route.RetryPolicy(
    retry_on="connect-failure,refused-stream,reset-before-request",
    num_retries=3,
    retry_host_predicate=[
        route.RetryPolicyRetryHostPredicate(
            name="envoy.retry_host_predicates.previous_hosts",
            typed_config=packed(previous_hosts.PreviousHostsPredicate()),
        )
    ],
    host_selection_retry_max_attempts=5,
    retry_back_off=route.RetryPolicyRetryBackOff(base_interval=seconds(0.025), max_interval=seconds(0.25)),
)


def _nobody() -> bytes:
    """Answers requests that are for no deployment."""
    routes = [route.Route(match=route.RouteMatch(path="/"), direct_response=_text(200, "OK"))]
    for path in ("/predict", "/update"):
        given = [
            route.QueryParameterMatcher(
                name=name, string_match=matcher.StringMatcher(safe_regex=matcher.RegexMatcher(regex=".+"))
            )
            for name in ("project", "deploy")
        ]
        unknown = "deployment %QUERY_PARAM(deploy)% of project %QUERY_PARAM(project)% does not exist"
        routes += [
            route.Route(
                match=route.RouteMatch(path=path, query_parameters=given), direct_response=_answer(404, unknown)
            ),
            route.Route(
                match=route.RouteMatch(path=path),
                direct_response=_answer(400, "project or deploy is missing", expected=EXPECTED.format(path=path)),
            ),
        ]
    return _on_match([bytes(each) for each in routes])


def _text(status: int, body: str) -> route.DirectResponseAction:
    return route.DirectResponseAction(status=status, body=core.DataSource(inline_string=body))


def _answer(status: int, error: str, **more: str) -> route.DirectResponseAction:
    body_format = splice.field(_BODY_FORMAT, bytes(_json(router_error=error, **more)))
    answer: route.DirectResponseAction = messages.added(route.DirectResponseAction(status=status), body_format)
    return answer


def _json(**fields: str) -> core.SubstitutionFormatString:
    values = {name: protobuf.Value(string_value=value) for name, value in fields.items()}
    return core.SubstitutionFormatString(json_format=protobuf.Struct(fields=values))


# Pieces that are the same in every deployment, and the numbers of the fields that are not.
_CLUSTER_NAME = number(cluster.Cluster, "name")
_EDS_CLUSTER_CONFIG = number(cluster.Cluster, "eds_cluster_config")
_LOAD_ASSIGNMENT = number(cluster.Cluster, "load_assignment")
_EDS_CONFIG = bytes(cluster.ClusterEdsClusterConfig(eds_config=_FROM_ADS))
_ASSIGNMENT_NAME = number(endpoint.ClusterLoadAssignment, "cluster_name")
_LOCALITIES = number(endpoint.ClusterLoadAssignment, "endpoints")
_LB_ENDPOINTS = number(endpoint.LocalityLbEndpoints, "lb_endpoints")
_LB_ENDPOINT = number(endpoint.LbEndpoint, "endpoint")
_ENDPOINT_ADDRESS = number(endpoint.Endpoint, "address")
_SOCKET_ADDRESS = number(core.Address, "socket_address")
_ADDRESS_HOST = number(core.SocketAddress, "address")
_ADDRESS_PORT = number(core.SocketAddress, "port_value")
_ROUTE_ACTION = number(route.Route, "route")
_ACTION_CLUSTER = number(route.RouteAction, "cluster")
_UPDATE_ACTION = bytes(route.RouteAction(cluster=UPDATE_CLUSTER, timeout=UPDATE_TIMEOUT))
_ROUTES_ACTION = bytes(xds.TypedExtensionConfig(name="routes"))
_NO_REPLICA = splice.field(
    number(route.Route, "direct_response"),
    bytes(_answer(503, f"deployment %REQ({DEPLOYMENT_HEADER})% has no ready replica")),
)


# ------------------------------------------------------------------------------------------------------------ listeners


def main_listener(edge: Edge) -> bytes:
    """Builds the listener for all deployments, which reads project and deployment from each request's query."""
    return _listener(MAIN_LISTENER, edge, edge.port, "%QUERY_PARAM(project)%/%QUERY_PARAM(deploy)%", own=False)


def own_listener(deployment: str, edge: Edge, port: int) -> bytes:
    """Builds the listener of a deployment's own port: all of its requests are for that deployment."""
    return _listener(deployment, edge, port, route_key(deployment), own=True)


def _listener(name: str, edge: Edge, port: int, key: str, *, own: bool) -> bytes:
    mutations = [
        messages.added(
            mutation.HeaderMutation(),
            splice.field(_REMOVE_ON_MATCH, splice.field(_KEY_MATCHER, bytes(matcher.StringMatcher(prefix=prefix)))),
        )
        for prefix in RESERVED_HEADERS
    ]
    mutations.append(_set_header(DEPLOYMENT_HEADER, key))
    if own:
        mutations.append(_set_header(OWN_PORT_HEADER, "1"))
    http = manager.HttpConnectionManager(
        stat_prefix="router",
        rds=manager.Rds(route_config_name=ROUTE_TABLE, config_source=_FROM_ADS),
        early_header_mutation_extensions=[
            extension("envoy.http.early_header_mutation.header_mutation", early.HeaderMutation(mutations=mutations))
        ],
        http_filters=[
            manager.HttpFilter(
                name="envoy.filters.http.router",
                typed_config=packed(router_filter.Router(suppress_envoy_headers=True)),
            )
        ],
        use_remote_address=True,
        preserve_external_request_id=True,
        server_header_transformation=manager.HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        http_protocol_options=core.Http1ProtocolOptions(accept_http_10=True),
        request_headers_timeout=seconds(30),
        local_reply_config=_LOCAL_REPLIES,
    )
    # Nothing moves on a connection while a model thinks, so this bound must not be the narrower one.
    idle = seconds(max(300.0, edge.request_timeout + 30) if edge.request_timeout else 0)
    messages.added(http, messages.duration(number(manager.HttpConnectionManager, "stream_idle_timeout"), idle))
    message = listener.Listener(
        name=name,
        address=core.Address(socket_address=core.SocketAddress(address=edge.host, port_value=port)),
        # With SO_REUSEPORT a second proxy would share the port and take half of the requests instead of being told.
        enable_reuse_port=False,
        filter_chains=[
            listener.FilterChain(
                filters=[
                    listener.Filter(name="envoy.filters.network.http_connection_manager", typed_config=packed(http))
                ]
            )
        ],
    )
    return splice.any_message(LISTENER, bytes(message))


def _set_header(name: str, value: str) -> mutation.HeaderMutation:
    return mutation.HeaderMutation(
        append=core.HeaderValueOption(
            header=core.HeaderValue(key=name, value=value),
            append_action=core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )


def _mapper(flags: list[str], error: str) -> manager.ResponseMapper:
    return manager.ResponseMapper(
        filter=accesslog.AccessLogFilter(response_flag_filter=accesslog.ResponseFlagFilter(flags=flags)),
        body_format_override=_json(router_error=error),
    )


# What Envoy says by itself, in the same words as the rest. Direct responses carry none of these flags.
_LOCAL_REPLIES = manager.LocalReplyConfig(
    mappers=[
        _mapper(["NR"], f"nothing is served here; expected {EXPECTED.format(path='/predict')}"),
        _mapper(["UH"], "the deployment has no ready replica"),
        _mapper(["NC"], "the deployment is not routed yet"),
        _mapper(["UT", "SI"], "the replica did not answer in time"),
        _mapper(["UO"], "too many requests are waiting"),
        _mapper(["UF", "URX", "UC", "UR", "LR"], "the replica could not be reached or broke off: %LOCAL_REPLY_BODY%"),
    ]
)
