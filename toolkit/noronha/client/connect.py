"""Reaches the mesh that the settings name, or the embedded one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noronha.client.connection import Mesh, Notice, read_token, silent

if TYPE_CHECKING:
    from noronha.client.configuration import Configuration


def connect(configuration: Configuration | None = None, *, start: bool = True, notice: Notice = silent) -> Mesh:
    """Returns a connection to the mesh that the configuration names, or to the embedded one, started when needed.

    ``notice`` receives lines for the user, such as a service that does not serve. With ``start`` false a missing
    embedded mesh is Unavailable ``NO_MESH``. Raises InvalidArgument ``BAD_SETTING``, and as
    ``noronha.client.mesh.embedded``.
    """
    if configuration is None:
        from noronha.client import configuration as configurations

        configuration = configurations.load()
    chosen = configuration.client.mesh
    if chosen.address:
        return Mesh(chosen.address, token=read_token(chosen.token_file))
    from noronha.client import mesh

    return mesh.embedded(configuration, start=start, notice=notice)
