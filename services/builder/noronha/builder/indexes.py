"""Where packages come from: what a user set for uv or pip counts for builds as well."""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Mapping
from pathlib import Path

_LEFT_OUT = (
    "VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "CONDA_PREFIX", "CONDA_DEFAULT_ENV",
    "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_CONSTRAINT", "UV_OVERRIDE",
)  # fmt: skip
"""Variables that speak of the mesh's own environment, or that would change what a build means unseen."""

_OF_PIP = {
    "index-url": (("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
    "extra-index-url": (("UV_EXTRA_INDEX_URL", "UV_INDEX"), " "),
    "find-links": (("UV_FIND_LINKS",), ","),
    "trusted-host": (("UV_INSECURE_HOST",), " "),
    "cert": (("SSL_CERT_FILE",), " "),
}
"""Key of pip to the variables by which uv knows the same, the first being set where none is, and what joins several."""

_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")


def for_uv(environment: Mapping[str, str], *, pip_files: list[Path] | None = None) -> dict[str, str]:
    """Returns the environment that uv runs in.

    What uv is told by variables of its own stands; what pip is told, by variables or by its files, fills the gaps.
    ``pip_files`` defaults to those that pip reads.
    """
    found = {
        name: value for name, value in environment.items() if name not in _LEFT_OUT and not name.startswith("NHA_")
    }
    from_pip = _pip_files(_places(environment) if pip_files is None else pip_files)
    for key in _OF_PIP:
        value = environment.get("PIP_" + key.upper().replace("-", "_"))
        if value:
            from_pip[key] = value
    for key, (names, joint) in _OF_PIP.items():
        value = " ".join(from_pip.get(key, "").split())
        if value and not any(found.get(name) for name in names):
            found[names[0]] = value.replace(" ", joint)
    found.update(NO_COLOR="1", UV_NO_PROGRESS="1", UV_PYTHON_DOWNLOADS="never")
    return found


def without_credentials(text: str) -> str:
    """Returns the text with user and password left out of its URLs."""
    return _CREDENTIALS.sub(r"\1", text)


def _places(environment: Mapping[str, str]) -> list[Path]:
    named = environment.get("PIP_CONFIG_FILE")
    if named:
        return [Path(named)]
    home = Path(environment.get("HOME") or Path.home())
    settings = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    return [
        Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf"), home / ".pip" / "pip.conf", settings / "pip" / "pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]  # fmt: skip


def _pip_files(files: list[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # pip's own file, and pip's place to complain about it
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key: value for key, value in parser.items(section) if key in _OF_PIP})
    return found
