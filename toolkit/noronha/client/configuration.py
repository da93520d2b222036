"""What a client reads: its own settings, and those that an embedded mesh of the same user reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from noronha.rpc import settings
from noronha.rpc.settings import Settings


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The settings of a client beside those of its mesh."""

    client: Settings
    """From ``./nha.yaml``, else ``~/.nha/nha.yaml``."""
    mesh: Settings
    """From ``~/.nha/nha.yaml`` alone, or from the file that was named."""
    local_file: Path | None = None
    """``./nha.yaml`` when that is where ``client`` comes from."""
    mesh_file: Path | None = None
    """File that ``mesh`` comes from."""


def load(directory: Path | None = None, mesh_file: Path | None = None) -> Configuration:
    """Returns the configuration for a working directory (default the current one).

    Raises InvalidArgument ``BAD_SETTING`` for a file that is not right.
    """
    file = settings.client_file(directory)
    home = mesh_file or settings.mesh_file()
    client = settings.load(file)
    if file == home:
        return Configuration(client, client, None, home)
    return Configuration(
        client, settings.load(home), file if file and file.parent != Path.home() / ".nha" else None, home
    )


def contradiction(configuration: Configuration, running: dict[str, str]) -> str | None:
    """Returns one line about a mesh key of ``./nha.yaml`` that the mesh has otherwise; None when all agree.

    ``running`` is the mesh's fingerprint, as in ``Mesh.GetInfo``.
    """
    if configuration.local_file is None:
        return None
    wanted = configuration.client.fingerprint()
    for key in sorted(configuration.client.written & wanted.keys()):
        have = running.get(key)
        elsewhere = configuration.client.origins[key] != str(configuration.local_file)
        if have is None or have == wanted[key] or elsewhere:
            continue
        if key == "mesh.state_dir" and str(configuration.client.state_dir) == str(configuration.mesh.state_dir):
            continue
        return (
            f"{key} is {wanted[key]} in {configuration.local_file} but {have} in the mesh, which reads it from "
            f"~/.nha/nha.yaml; set it there and run 'nha mesh down', or remove it here"
        )
    return None


def stale(configuration: Configuration, running: dict[str, str]) -> list[str]:
    """Returns a line for each mesh key of the mesh's own file, or of the environment, that it was not started with."""
    wanted = configuration.mesh.fingerprint()
    return [
        f"{key} is {wanted[key]} in {configuration.mesh.origins[key]}, but the mesh that runs was started with "
        f"{running[key]}; after 'nha mesh down' the next one takes it up"
        for key in sorted(configuration.mesh.written & wanted.keys() & running.keys() - {"mesh.state_dir"})
        if running[key] != wanted[key]
    ]
