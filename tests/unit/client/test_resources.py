"""Settings become the messages that requests carry."""

from __future__ import annotations

from typing import Any

import pytest

from noronha.client import resources
from noronha.rpc import settings
from noronha.rpc.errors import InvalidArgument


def _settings(profiles: dict[str, Any]) -> settings.Settings:
    return settings.Settings(container_manager=settings.ContainerManager(resource_profiles=profiles))


@pytest.mark.parametrize(
    "value,milli", [(1, 1000), (0.5, 500), ("0.5", 500), ("500m", 500), (0.001, 1), ("2", 2000), (1.25, 1250)]
)
def test_processors(value: Any, milli: int) -> None:
    assert resources.cpu_milli(value, "cpu") == milli


@pytest.mark.parametrize(
    "value", [0, -1, 0.0005, "x", "0.5m", "1e9", True, None, float("nan"), float("inf"), [], 0.0015]
)
def test_processors_that_cannot_be(value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resources.cpu_milli(value, "container_manager.resource_profiles.p.limits.cpu")
    assert "container_manager.resource_profiles.p.limits.cpu" in caught.value.message


def test_a_profile_by_name_then_by_section_then_none() -> None:
    loaded = _settings({"nha-train": {"limits": {"cpu": 1, "memory": 256}}, "big": {"requests": {"memory": 2048}}})
    named = resources.resources(loaded, "nha-train", "big")
    assert named is not None and named.profile == "big" and named.requests.memory_mb == 2048
    section = resources.resources(loaded, "nha-train")
    assert section is not None and section.limits.cpu_milli == 1000 and section.limits.memory_mb == 256
    assert resources.resources(loaded, "nha-depl") is None
    with pytest.raises(InvalidArgument) as caught:
        resources.resources(loaded, "nha-train", "bgi")
    assert caught.value.reason == "UNKNOWN_PROFILE" and "big" in caught.value.message


@pytest.mark.parametrize(
    "profile",
    [
        [], {"limit": {}}, {"limits": {"cpus": 1}}, {"limits": {"memory": "1GB"}}, {"limits": {"memory": 0}},
        {"enable_gpu": "yes"}, {"service_type": "Ingress"}, {"auto_scale": True, "minReplicas": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_profile_that_is_not_right_is_refused_by_key(profile: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resources.resolve("p", profile)
    assert caught.value.reason == "BAD_SETTING" and "resource_profiles.p" in caught.value.message


def test_scaling_has_the_manuals_defaults() -> None:
    found = resources.resolve("p", {"auto_scale": True})
    scale = found.auto_scale
    assert (scale.min_replicas, scale.max_replicas, scale.target_cpu_percent) == (1, 10, 50)
    assert not resources.resolve("p", {"minReplicas": 2}).HasField("auto_scale")


def test_the_health_check_has_the_manuals_defaults() -> None:
    found = resources.health_check(settings.Settings())
    seconds = (found.start_period.seconds, found.interval.seconds, found.timeout.seconds)
    assert (found.enabled, *seconds, found.retries) == (False, 60, 30, 3, 3)


def test_the_web_server_and_its_threads() -> None:
    chosen = settings.WebServer(
        type="gunicorn", threads=settings.Threads(enabled=True, number=4), extra_conf={"workers": 2}
    )
    found = resources.web_server(settings.Settings(web_server=chosen))
    assert (found.type, found.threads_number, found.extra_conf_json) == (2, 4, '{"workers": 2}')
    with pytest.raises(InvalidArgument):
        resources.web_server(settings.Settings(web_server=settings.WebServer(type="flask")))
