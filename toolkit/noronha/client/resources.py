"""Turns the user's settings into the messages that requests carry: resource profiles, health check, web server."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from noronha.rpc.errors import InvalidArgument
from noronha.rpc.settings import Settings, bad

if TYPE_CHECKING:
    from noronha.v1 import health_check_pb2, resources_pb2, web_server_pb2

AMOUNTS = frozenset({"cpu", "memory"})
KEYS = frozenset(
    {
        "requests", "limits", "enable_gpu", "service_type", "auto_scale", "minReplicas", "maxReplicas",
        "targetCPUUtilizationPercentage",
    }
)  # fmt: skip
SERVICE_TYPES = {"ClusterIP": "CLUSTER_IP", "NodePort": "NODE_PORT", "LoadBalancer": "LOAD_BALANCER"}


def resources(settings: Settings, section: str, profile: str | None = None) -> resources_pb2.Resources | None:
    """Returns the resources of a named profile, else of the section's own (``nha-train``, ``nha-depl``, ``nha-ide``),
    else None.

    Raises InvalidArgument ``UNKNOWN_PROFILE`` for a name that no profile has, ``BAD_SETTING`` for a profile that is not
    right.
    """
    profiles = settings.container_manager.resource_profiles
    if profile is not None and profile not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise InvalidArgument(
            f"resource profile {profile!r} is not configured under container_manager.resource_profiles; known: {known}",
            reason="UNKNOWN_PROFILE", profile=profile,
        )  # fmt: skip
    name = profile or section
    if name not in profiles:
        return None
    return resolve(name, profiles[name] or {})


def resolve(name: str, profile: Any) -> resources_pb2.Resources:
    """Returns the message for one profile. Raises InvalidArgument ``BAD_SETTING``."""
    from noronha.v1 import resources_pb2

    path = f"container_manager.resource_profiles.{name}"
    if not isinstance(profile, dict):
        raise bad(path, "must hold keys such as limits")
    for key in profile:
        if key not in KEYS:
            raise bad(f"{path}.{key}", f"is unknown; known are {', '.join(sorted(KEYS))}")
    message = resources_pb2.Resources(profile=name)
    for key in ("requests", "limits"):
        if profile.get(key):
            getattr(message, key).CopyFrom(_amount(profile[key], f"{path}.{key}"))
    if "enable_gpu" in profile:
        message.enable_gpu = _flag(profile["enable_gpu"], f"{path}.enable_gpu")
    if "service_type" in profile:
        chosen = SERVICE_TYPES.get(profile["service_type"])
        if chosen is None:
            raise bad(f"{path}.service_type", f"must be one of {', '.join(SERVICE_TYPES)}")
        message.service_type = resources_pb2.Resources.ServiceType.Value(chosen)
    if _flag(profile.get("auto_scale", False), f"{path}.auto_scale"):
        message.auto_scale.min_replicas = _whole(profile.get("minReplicas", 1), f"{path}.minReplicas")
        message.auto_scale.max_replicas = _whole(profile.get("maxReplicas", 10), f"{path}.maxReplicas")
        message.auto_scale.target_cpu_percent = _whole(
            profile.get("targetCPUUtilizationPercentage", 50), f"{path}.targetCPUUtilizationPercentage"
        )
    return message


def _amount(value: Any, path: str) -> resources_pb2.Resources.Amount:
    from noronha.v1 import resources_pb2

    if not isinstance(value, dict) or not value.keys() <= AMOUNTS:
        raise bad(path, "must hold cpu and memory")
    amount = resources_pb2.Resources.Amount()
    if value.get("cpu") is not None:
        amount.cpu_milli = cpu_milli(value["cpu"], f"{path}.cpu")
    if value.get("memory") is not None:
        amount.memory_mb = _whole(value["memory"], f"{path}.memory")
    return amount


def cpu_milli(value: Any, path: str) -> int:
    """Returns thousandths of a processor: 500 for ``0.5`` and ``"500m"``. Raises InvalidArgument ``BAD_SETTING``."""
    number: float
    try:
        if isinstance(value, bool):
            raise ValueError
        milli = isinstance(value, str) and value.endswith("m")
        number = float(int(value[:-1])) if milli else float(value) * 1000
    except (TypeError, ValueError):
        raise bad(path, f"must be a number of processors such as 0.5 or '500m', not {value!r}") from None
    if not math.isfinite(number) or number < 1 or abs(number - round(number)) > 1e-6 or number > 1e9:
        raise bad(path, f"must be at least 0.001 processors in steps of 0.001, not {value!r}")
    return round(number)


def _whole(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise bad(path, f"must be a whole number from 1, not {value!r}")
    return value


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise bad(path, f"must be true or false, not {value!r}")
    return value


def health_check(settings: Settings) -> health_check_pb2.HealthCheck:
    """Returns how replicas are to be probed."""
    from noronha.v1 import health_check_pb2

    chosen = settings.container_manager.healthcheck
    message = health_check_pb2.HealthCheck(enabled=chosen.enabled, retries=chosen.retries)
    for field in ("start_period", "interval", "timeout"):
        getattr(message, field).FromNanoseconds(int(getattr(chosen, field) * 1e9))
    return message


def web_server(settings: Settings) -> web_server_pb2.WebServer:
    """Returns how replicas are to serve. Raises InvalidArgument ``BAD_SETTING`` for an unknown kind of server."""
    from noronha.v1 import web_server_pb2

    chosen = settings.web_server
    kinds = {"simple": web_server_pb2.WebServer.SIMPLE, "gunicorn": web_server_pb2.WebServer.GUNICORN}
    if chosen.type not in kinds:
        raise bad("web_server.type", f"must be simple or gunicorn, not {chosen.type!r}")
    return web_server_pb2.WebServer(
        type=kinds[chosen.type], enable_debug=chosen.enable_debug, threads_enabled=chosen.threads.enabled,
        threads_high_cpu=chosen.threads.high_cpu, threads_number=chosen.threads.number or 0,
        extra_conf_json=json.dumps(chosen.extra_conf) if chosen.extra_conf else "",
    )  # fmt: skip
