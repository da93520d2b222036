"""A socket between a client and a server that cuts the connection, or falls silent, after so many bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path


class CuttingProxy:
    """Forwards connections from ``path`` to ``target``. ``allowance()`` says how many bytes, both ways together, the next
    connection carries before it is cut; None for any number. With ``silent`` nothing more is passed on instead, until the
    client has gone."""

    def __init__(self, path: Path, target: Path, allowance: Callable[[], int | None], *, silent: bool = False) -> None:
        self.address = f"unix:{path}"
        self.cuts = 0
        self.sent = 0
        """Bytes that clients sent and that were passed on."""
        self._silent = silent
        self._target = target
        self._allowance = allowance
        self._open: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *exception: object) -> None:
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        self._open |= {client, server}
        left = self._allowance()
        try:
            server.connect(str(self._target))
            while True:
                readable, _, _ = select.select([client, server], [], [])
                for source in readable:
                    data = source.recv(1 << 16 if left is None else min(1 << 16, left))
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    self.sent += len(data) if source is client else 0
                    if left is not None:
                        left -= len(data)
                        if left <= 0:
                            self.cuts += 1
                            while self._silent and client.recv(1 << 16):
                                pass
                            return
        except (OSError, ValueError):
            return
        finally:
            client.close()
            server.close()
            self._open -= {client, server}
