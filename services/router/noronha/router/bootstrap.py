"""What Envoy is started with: where it asks for its configuration, and with which token. Plain data, no I/O."""

from __future__ import annotations

import json
from typing import Any

ADS_CLUSTER = "noronha-mesh"

MAX_CONNECTIONS = 50_000
"""Most connections of clients that Envoy keeps open at once; more are refused."""

# Thousands of clusters with a hundred counters each cost more memory than all the rest, and nobody reads them.
STATS = ("server.", "listener_manager.", "cluster_manager.", "control_plane.", "http.router.")


def bootstrap(*, mesh_address: str, token: str, admin_socket: str, mesh_id: str, release: str) -> str:
    """Returns Envoy's bootstrap as JSON text. It holds `token`, so it belongs in a file that only its owner reads.

    `mesh_address` is where Router serves discovery, `unix:/path` or `host:port`. `release` is Envoy's: with another
    one, the text differs, and so a running Envoy is known to be of an older installation.
    """
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "10s"}
    found: dict[str, Any] = {
        "node": {"id": f"router-{mesh_id}", "cluster": "noronha", "metadata": {"release": release}},
        "admin": {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": ADS_CLUSTER,
                            # A mesh that comes back is found within a second, not after Envoy's default of 30 s.
                            "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}},
                        },
                        "initial_metadata": [{"key": "authorization", "value": f"Bearer {token}"}],
                    }
                ],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": ADS_CLUSTER,
                    "type": "STATIC" if mesh_address.startswith("unix:") else "STRICT_DNS",
                    "connect_timeout": "2s",
                    "load_assignment": {
                        "cluster_name": ADS_CLUSTER,
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(mesh_address)}}]}],
                    },
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {
                                # A frozen mesh, or one across a dead network, is noticed by its silence.
                                "http2_protocol_options": {
                                    "connection_keepalive": {"interval": "30s", "timeout": "10s"}
                                }
                            },
                        }
                    },
                }
            ]
        },
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": [{"prefix": each} for each in STATS]}}},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }
    return json.dumps(found, indent=1, sort_keys=True)


def _address(address: str) -> dict[str, Any]:
    if address.startswith("unix:"):
        return {"pipe": {"path": address.removeprefix("unix:")}}
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1"  # what listens on every address also listens here
    return {"socket_address": {"address": host, "port_value": int(port)}}
