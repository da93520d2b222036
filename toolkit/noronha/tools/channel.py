"""How a notebook asks the process that runs it for what needs the mesh: one question a connection, on a Unix socket.

The notebook's own environment thereby needs neither a connection nor a token, whatever versions of grpc or protobuf
it pins, and forked workers may ask as freely as anybody. A question and its answer are one line of JSON each.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from noronha.rpc.errors import BY_CODE, Internal, InvalidArgument, NoronhaError, Unavailable, Unknown
from noronha.tools import surroundings

SOCKET = "task.sock"

MAX_LINE = 16 << 20
"""Most bytes of one question or answer."""

Handler = Callable[[dict[str, Any]], Any]


def ask(question: str, *, what: str, timeout: float | None = None, **arguments: Any) -> Any:
    """Asks the task process and returns its answer; waits for ever unless ``timeout`` seconds are given.

    Raises OutsideTaskError outside a task, Unavailable ``TASK_GONE`` when nobody answers, and what the task process
    raised.
    """
    folder = surroundings.require_task_folder(what)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            with _reachable(folder) as path:
                connection.connect(path)
            connection.sendall(json.dumps({"ask": question, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_LINE)
        except OSError as error:
            raise Unavailable(
                f"the process that runs this notebook does not answer: {error.strerror or error}", reason="TASK_GONE"
            ) from None
    if not line:
        raise Unavailable("the process that runs this notebook ended before it answered", reason="TASK_GONE")
    answer = json.loads(line)
    if "error" in answer:
        raise _error_of(answer["error"])
    return answer.get("answer")


@contextlib.contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """Yields a path of the socket that is short enough for one, however long the folder's is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


def _error_of(told: Mapping[str, Any]) -> NoronhaError:
    error = BY_CODE.get(told.get("code", 2), Unknown)(told.get("message", ""), reason=told.get("reason"))
    error.metadata = {str(key): str(value) for key, value in told.get("metadata", {}).items()}
    return error


class Listener:
    """Answers the questions of one notebook, each in a thread of its own.

    ``handlers`` maps a question to a function of its arguments; what it returns is the answer, a NoronhaError it raises
    is raised again where the question was asked. ``on_defect`` is told of anything else it raises.
    """

    def __init__(
        self, folder: Path, handlers: Mapping[str, Handler], on_defect: Callable[[BaseException], None] = lambda _: None
    ):
        self._handlers = handlers
        self._on_defect = on_defect
        self._path = folder / SOCKET
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with _reachable(folder) as path:
            self._socket.bind(path)
        os.chmod(self._path, 0o600)
        self._socket.listen(64)
        self._thread = threading.Thread(target=self._accept, name="task-channel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops answering."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), name="task-answer", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            line = stream.readline(MAX_LINE)
            if line:
                connection.sendall(json.dumps(self._answer_to(line)).encode() + b"\n")

    def _answer_to(self, line: bytes) -> dict[str, Any]:
        try:
            question = json.loads(line)
            handler = self._handlers.get(question.pop("ask", ""))
            if handler is None:
                raise InvalidArgument("this task does not know what the toolkit asked for; build the project again",
                                      reason="UNKNOWN_QUESTION")  # fmt: skip
            return {"answer": handler(question)}
        except NoronhaError as error:
            from noronha.client.words import in_words, named_by

            # What a notebook is told ends in its log, where people read it.
            return {"error": {"code": error.code, "reason": error.reason, "metadata": error.metadata,
                              "message": in_words(error.message, named_by(error)).text}}  # fmt: skip
        except Exception as defect:
            self._on_defect(defect)
            return {"error": {"code": Internal.code, "reason": "TASK_ERROR",
                              "message": f"the task could not answer: {type(defect).__name__}: {defect}"}}  # fmt: skip
