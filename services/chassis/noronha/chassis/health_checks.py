"""How replicas are probed where a deployment does not say so: by the defaults that the settings declare."""

from __future__ import annotations

from noronha.chassis.durations import seconds_of
from noronha.rpc.settings import Healthcheck
from noronha.v1.health_check_pb2 import HealthCheck


def completed(check: HealthCheck) -> Healthcheck:
    """Returns what a deployment asks for, with the default for each field that is not set."""
    default = Healthcheck()
    return Healthcheck(
        enabled=check.enabled,
        start_period=seconds_of(check.start_period) if check.HasField("start_period") else default.start_period,
        interval=seconds_of(check.interval) if check.HasField("interval") else default.interval,
        timeout=seconds_of(check.timeout) if check.HasField("timeout") else default.timeout,
        retries=check.retries or default.retries,
    )
