"""Settings: every key typed, unknown ones refused with the nearest, secrets never shown."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from noronha.rpc import settings
from noronha.rpc.errors import InvalidArgument


def _load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> settings.Settings:
    file = tmp_path / "nha.yaml"
    file.write_text(text)
    return settings.load(file, environ or {})


def test_defaults_choose_the_embedded_backends() -> None:
    loaded = settings.load(None, {})
    assert [loaded.backend(name) for name in ("metadata", "store", "builder", "runner")] == [
        "sqlite:", "file:", "venv:", "process:",
    ]  # fmt: skip
    assert loaded.router.port == 30080


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    loaded = _load(
        tmp_path, "router: {port: 1}\n", {"NHA_ROUTER__PORT": "31000", "NHA_HOME": "/x", "NHA_MESH__STATE_DIR": "1"}
    )
    assert loaded.router.port == 31000 and loaded.mesh.state_dir == "1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("routr: {port: 1}\n", "did you mean router?"),
        ("router: {prot: 1}\n", "did you mean port?"),
        ("router: {port: yes}\n", "must be a whole number"),
        ("router: {port: '1'}\n", "must be a whole number"),
        ("router: 5\n", "must hold keys"),
        ("router: [\n", "is not YAML"),
        ("- a\n", "must hold sections"),
        ("container_manager: {healthcheck: {retrys: 1}}\n", "did you mean retries?"),
        ("file_manager: {port: 1}\n", "did you mean file_store?"),
        ("logger: {level: banana}\n", "must be DEBUG, INFO, WARN, WARNING or ERROR, not 'banana'"),
        ("mesh: {log_level: banana}\n", "must be DEBUG"),
        ("web_server: {type: flask}\n", "must be simple or gunicorn, not 'flask'"),
        ("container_manager: {type: moby}\n", "must be local, swarm or kube, not 'moby'"),
    ],
)
def test_mistakes_are_one_line_that_helps(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says.replace("?", r"\?")) as caught:
        _load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_keys_of_earlier_releases_warn(tmp_path: Path) -> None:
    loaded = _load(
        tmp_path, "resource_profiles: {nha-train: {}}\nlightweight_store: {time_to_leave: 3}\npredict: {online: 1}\n"
    )
    assert "nha-train" in loaded.container_manager.resource_profiles and len(loaded.warnings) == 3


def test_secrets_show_nowhere(tmp_path: Path) -> None:
    loaded = _load(tmp_path, "mongo: {native: false, pswd: canary}\nfile_store: {pswd: canary}\n")
    assert "canary" not in repr(loaded) and "canary" not in repr(loaded.fingerprint())


def test_native_servers_need_a_container_manager(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="needs swarm or kube"):
        _load(tmp_path, "mongo: {native: true}\n").backend("metadata")


def test_the_fingerprint_is_json_without_secrets(tmp_path: Path) -> None:
    loaded = _load(tmp_path, "mongo: {pswd: canary}\ncontainer_manager: {nfs: {server: s, path: /p}}\n")
    found = {key: json.loads(value) for key, value in loaded.fingerprint().items()}
    assert found["container_manager.nfs"] == {"server": "s", "path": "/p"} and found["router.port"] == 30080
    assert "canary" not in str(loaded.fingerprint())


@pytest.mark.parametrize("address", ["127.0.0.1:7401", "mesh.example:1", "[::1]:65535", "unix:/run/mesh.sock", ""])
def test_an_address_is_a_host_with_a_port_or_a_socket(address: str) -> None:
    assert settings.load(None, {"NHA_MESH__ADDRESS": address}).mesh.address == address


@pytest.mark.parametrize(
    "address", ["garbage", "host:", "host:0", "host:65536", "[::1", "bad host:1", "unix:", "http://h:1"]
)
def test_anything_else_is_refused_with_the_form(address: str) -> None:
    with pytest.raises(InvalidArgument, match=r"must be host:port, such as 127\.0\.0\.1:7401, or unix:/path") as caught:
        settings.load(None, {"NHA_MESH__ADDRESS": address})
    assert caught.value.reason == "BAD_SETTING"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        *((f"{section}: {{port: {port}}}", f"{section}.port must be 1 to 65535, not {port}")
          for section in ("router", "mongo", "file_store", "lightweight_store", "web_server")
          for port in (0, -1, 65536, 70000)),
        ("mesh: {idle_stop: -1}", "mesh.idle_stop must be at least 0, not -1.0"),
        ("mesh: {log_max_bytes: -1}", "mesh.log_max_bytes must be at least 0, not -1"),
        ("runner: {grace: .nan}", "runner.grace must be at least 0, not nan"),
        ("runner: {heartbeat_timeout: .inf}", "runner.heartbeat_timeout must be a finite number, not inf"),
        ("container_manager: {healthcheck: {retries: -1}}", "healthcheck.retries must be at least 0, not -1"),
        ("web_server: {threads: {number: -2}}", "web_server.threads.number must be at least 0, not -2"),
        ("container_manager: {api_timeout: -0.5}", "container_manager.api_timeout must be at least 0, not -0.5"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused_where_they_are_read(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(why)) as caught:
        _load(tmp_path, line + "\n")
    assert caught.value.reason == "BAD_SETTING"


def test_the_ends_of_what_a_number_may_be_are_taken(tmp_path: Path) -> None:
    lines = "mesh: {idle_stop: 0}\nrouter: {port: 65535, concurrency: 0}\ncontainer_manager: {api_timeout: null}\n"
    loaded = _load(tmp_path, lines, {"NHA_MONGO__PORT": "1"})
    assert (loaded.mesh.idle_stop, loaded.router.port, loaded.mongo.port) == (0, 65535, 1)
    assert loaded.container_manager.api_timeout is None
    with pytest.raises(InvalidArgument, match=r"router\.port must be 1 to 65535"):
        settings.load(None, {"NHA_ROUTER__PORT": "70000"})


def test_words_are_taken_in_any_case_and_read_as_documented(tmp_path: Path) -> None:
    assert _load(tmp_path, "logger: {level: warn}\n").logger.level == "WARN"


def test_every_key_knows_where_it_was_set(tmp_path: Path) -> None:
    loaded = _load(tmp_path, "mesh: {address: 'h:1', token_file: t}\n", {"NHA_MESH__ADDRESS": "h:2"})
    assert loaded.origins["mesh.address"] == "NHA_MESH__ADDRESS"
    assert loaded.origins["mesh.token_file"] == str(tmp_path / "nha.yaml")
    assert loaded.written == {"mesh", "mesh.address", "mesh.token_file"}
