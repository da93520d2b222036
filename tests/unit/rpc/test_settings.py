"""Settings: every key typed, unknown ones refused with the nearest, secrets never shown."""

from __future__ import annotations

import json
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
