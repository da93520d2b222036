"""Starts a server: ``python -m noronha.chassis [SERVICE ...] [--listen ADDRESS] [--peer NAME=ADDRESS ...]``.

Without services all five are mounted; without ``--listen`` they are on the embedded socket.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
from pathlib import Path

# What gRPC's core says of a port in use, our own line says better; read when grpc is imported, so set before.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from noronha.chassis import serve
from noronha.rpc import settings
from noronha.rpc.errors import InvalidArgument, NoronhaError


def main(arguments: list[str] | None = None) -> int:
    """Serves until told to stop; returns the exit code: 0, or 2 when it could not start."""
    parser = argparse.ArgumentParser(prog="python -m noronha.chassis", description="Serves the mesh or a part of it.")
    parser.add_argument("services", nargs="*", default=[], help=f"services to mount, of {', '.join(serve.SERVICES)}")
    parser.add_argument("--listen", default="", help="unix:/path or host:port; default: the embedded socket")
    parser.add_argument("--peer", action="append", default=[], help="NAME=ADDRESS of a service that runs elsewhere")
    parser.add_argument("--config", help="settings file; default ~/.nha/nha.yaml")
    parser.add_argument("--state-dir", help="folder of the mesh's state; default mesh.state_dir")
    parser.add_argument("--address-file", default="", help="file that receives the address once the server answers")
    given = parser.parse_args(arguments)
    try:
        loaded = settings.load(Path(given.config) if given.config else settings.mesh_file())
        if given.state_dir:
            loaded = dataclasses.replace(loaded, mesh=dataclasses.replace(loaded.mesh, state_dir=given.state_dir))
        peers = {}
        for each in given.peer:
            name, separator, address = each.partition("=")
            if not separator or name not in serve.SERVICES:
                raise InvalidArgument(f"--peer {each!r} is not NAME=ADDRESS with a known service", reason="BAD_PEER")
            peers[name] = address
        options = serve.Options(
            settings=loaded, services=tuple(given.services) or serve.SERVICES, listen=given.listen, peers=peers,
            address_file=given.address_file,
        )  # fmt: skip
        asyncio.run(serve.serve(options))
    except NoronhaError as error:
        serve.fail(error.message)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
