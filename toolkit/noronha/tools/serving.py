"""Model servers: a prediction function becomes an HTTP service, one line at the end of a prediction notebook.

from noronha.tools.serving import OnlinePredict

OnlinePredict(predict_func=lambda body: model.predict(json.loads(body)))()
"""

from __future__ import annotations

import abc
import inspect
import mmap
import os
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from noronha.rpc.errors import InvalidArgument, NoronhaError, NotFound, Unavailable
from noronha.tools import answers, surroundings
from noronha.tools.errors import NhaDataError, ServingError
from noronha.tools.views import View

__all__ = ["LazyModelServer", "ModelServer", "OnlinePredict"]

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Route = tuple[str, Callable[[Environ], "tuple[str, bytes]"]]

OK = "200 OK"
BAD_REQUEST = "400 Bad Request"
MISSING = "404 Not Found"
NOT_ALLOWED = "405 Method Not Allowed"
ERROR = "500 Internal Server Error"
RAISED = "501 Not Implemented"
UNWELL = "503 Service Unavailable"

_STATUS = ((InvalidArgument, BAD_REQUEST), (NotFound, MISSING), (Unavailable, UNWELL))
"""What errors of ours are answered with, other than 500: the request's fault, or not for long."""


RECOVERY = 10.0
"""Seconds after an error of the server for which /health stays red unless an answer succeeds before.

Nothing is sent to a replica that is red, so it could never show that it is well again if only an answer could.
"""


class Shared:
    """A few bytes that all workers of a replica see: whether it is well, and a stamp of the versions in its folder."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, 16)

    @property
    def well(self) -> bool:
        """Whether no answer of a broken server was given lately, or a good one since."""
        (until,) = struct.unpack("d", self._bytes[:8])
        return time.monotonic() >= float(until)

    @well.setter
    def well(self, value: bool) -> None:
        self._bytes[:8] = struct.pack("d", 0.0 if value else time.monotonic() + RECOVERY)

    @property
    def stamp(self) -> bytes:
        """Changes whenever a version in the folder was replaced."""
        return self._bytes[8:16]

    def renew_stamp(self) -> None:
        """Tells every worker that a version was replaced."""
        self._bytes[8:16] = os.urandom(8)


class ModelServer(abc.ABC):
    """Serves a prediction function until it is told to stop; calling the instance serves.

    ``enrich`` wraps results as ``{"result": …, "metadata": {"datetime": …}}``; without it the bare result is answered.
    ``server_conf`` holds settings of gunicorn, or of ``web_server`` as in nha.yaml; ``server_type`` is ``simple`` or
    ``gunicorn``. Both win over what the deployment was made with.

    POST /predict answers 200, 400 for NhaDataError, 404 for a version that does not exist, 500 for other errors of
    Noronha's, 501 for any other exception.
    GET /health answers 200, and 503 after a 500 until an answer succeeds again or
    `RECOVERY` has passed.
    """

    def __init__(
        self,
        predict_func: Callable[..., Any],
        enrich: bool = True,
        server_conf: dict[str, Any] | None = None,
        server_type: str | None = None,
    ):
        if not callable(predict_func):
            raise ServingError(f"predict_func must be a function, not {type(predict_func).__name__}")
        self._predict_func = predict_func
        self._enrich = enrich
        self._server_conf = dict(server_conf or {})
        self._server_type = server_type
        self._shared = Shared()
        self._routes: Mapping[str, Route] | None = None

    @abc.abstractmethod
    def make_result(self, body: str, args: dict[str, str]) -> Any:
        """Returns the prediction for a request's body and its query arguments."""

    def make_metadata(self, body: str, args: dict[str, str]) -> dict[str, Any]:
        """Returns what an enriched answer says beside the result."""
        return {"datetime": time.strftime("%Y-%m-%d %H:%M:%S")}

    def get_routes(self) -> Mapping[str, Route]:
        """Returns each path with its method and what answers it."""
        return {"/predict": ("POST", self._answer_predict), "/health": ("GET", self._answer_health)}

    def __call__(self) -> None:
        """Serves until told to stop; requests in flight are finished."""
        from noronha.tools import gunicorn_server

        gunicorn_server.serve(self.wsgi, server_type=self._server_type, server_conf=self._server_conf)

    def wsgi(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """Answers one request; what a WSGI server calls."""
        routes = self._routes
        if routes is None:
            routes = self._routes = self.get_routes()
        route = routes.get(environ["PATH_INFO"])
        if route is None:
            status, body = MISSING, answers.encode({"err": f"no such path; there are {', '.join(sorted(routes))}"})
        elif environ["REQUEST_METHOD"] != route[0] and (route[0], environ["REQUEST_METHOD"]) != ("GET", "HEAD"):
            status, body = NOT_ALLOWED, answers.encode({"err": f"{environ['PATH_INFO']} takes {route[0]}"})
        else:
            status, body = route[1](environ)
        start_response(
            status,
            [("Content-Type", "application/json"), ("Charset", "utf-8"), ("Content-Length", str(len(body)))],
        )
        return [body]

    # -- what answers each path ---------------------------------------------------------------------------------
    def _answer_predict(self, environ: Environ) -> tuple[str, bytes]:
        args = _arguments(environ)
        body = read_body(environ)
        try:
            result = self.make_result(body, args)
            if not self._enrich:
                answer = _bare(result)
            else:
                answer = answers.encode({"result": result, "metadata": self.make_metadata(body, args)})
        except (Exception, SystemExit) as error:  # a function that exits must not take the whole replica with it
            return self._refuse(error, body, args)
        if not self._shared.well:
            self._shared.well = True
        return OK, answer

    def _refuse(self, error: BaseException, body: str, args: dict[str, str]) -> tuple[str, bytes]:
        told: Any
        if isinstance(error, NoronhaError):
            told, status = _told(error), _status_of(error)
        else:
            told, status = repr(error), RAISED
        if status == ERROR:
            self._shared.well = False
        if status in (ERROR, RAISED):
            log_error(error)
        answer: dict[str, Any] = {"err": told}
        if self._enrich:
            try:
                answer["metadata"] = self.make_metadata(body, args)
            except Exception as another:
                log_error(another)
        return status, answers.encode(answer)

    def _answer_health(self, environ: Environ) -> tuple[str, bytes]:
        return (OK, b'{"status": "ok"}') if self._shared.well else (UNWELL, b'{"status": "nok"}')


class OnlinePredict(ModelServer):
    """Serves ``predict_func(body: str)`` with whatever model the notebook has loaded.

    An enriched answer names the versions mounted in this replica.
    """

    def __init__(
        self,
        predict_func: Callable[[str], Any],
        enrich: bool = True,
        server_conf: dict[str, Any] | None = None,
        server_type: str | None = None,
    ):
        super().__init__(predict_func, enrich=enrich, server_conf=server_conf, server_type=server_type)
        self._versions: list[str] | None = None

    def make_result(self, body: str, args: dict[str, str]) -> Any:
        """Returns what the prediction function returns for the body."""
        return self._predict_func(body)

    def make_metadata(self, body: str, args: dict[str, str]) -> dict[str, Any]:
        """Returns the date and the versions mounted here."""
        if self._versions is None:
            self._versions = [View(one).show() for one in surroundings.assets("mv") if "_id" in one]
        return {"datetime": time.strftime("%Y-%m-%d %H:%M:%S"), "model_version": self._versions}


class LazyModelServer(ModelServer):
    """Serves many versions of one model: each is loaded when a request first names it in ``?model_version=``.

    ``load_model_func(path, meta)`` gets the version's folder and record and returns the model; ``predict_func(body,
    model, meta)`` predicts with it. Functions that take fewer arguments get fewer. ``model_name`` defaults to the
    project's only model. At most ``max_models`` are kept in memory; the one not used for longest goes first.

    POST /update?model_version= fetches a version anew and answers ``OK`` once it is loaded; until then, and when that
    fails, the old one serves.
    """

    def __init__(
        self,
        predict_func: Callable[..., Any],
        load_model_func: Callable[..., Any],
        model_name: str | None = None,
        max_models: int = 100,
        server_conf: dict[str, Any] | None = None,
        server_type: str | None = None,
        enrich: bool = True,
    ):
        super().__init__(predict_func, enrich=enrich, server_conf=server_conf, server_type=server_type)
        if not callable(load_model_func):
            raise ServingError(f"load_model_func must be a function, not {type(load_model_func).__name__}")
        if isinstance(max_models, bool) or not isinstance(max_models, int) or max_models < 1:
            raise ServingError(f"max_models must be a whole number from 1, not {max_models!r}")
        self._load_model_func = _taking(load_model_func, 2)
        self._predict = _taking(predict_func, 3)
        self._model_name = model_name
        self._max_models = max_models
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._loading: dict[str, _Loading] = {}
        self._lock = threading.Lock()

    def get_routes(self) -> Mapping[str, Route]:
        """Returns the routes of every model server, and /update."""
        return {**super().get_routes(), "/update": ("POST", self._answer_update)}

    def make_result(self, body: str, args: dict[str, str]) -> Any:
        """Returns what the prediction function returns for the body with the version that the request names."""
        version = args.get("model_version")
        if not version:
            raise NhaDataError(_expected(args), reason="MODEL_VERSION_MISSING")
        loaded = self._version(version)
        return self._predict(body, loaded.model, loaded.meta)

    def _version(self, version: str) -> _Loaded:
        loaded = self._loaded.get(version)
        if loaded is not None and loaded.stamp == self._shared.stamp:
            with self._lock:
                if version in self._loaded:
                    self._loaded.move_to_end(version)
            return loaded
        return self._load_once(version, loaded)

    def _load_once(self, version: str, old: _Loaded | None) -> _Loaded:
        """Loads a version, once for however many requests want it; the others wait, or use the old one meanwhile."""
        with self._lock:
            loading = self._loading.get(version)
            mine = loading is None
            if loading is None:
                loading = self._loading[version] = _Loading()
        if not mine:
            if old is not None:
                return old
            loading.done.wait()
            if loading.error is not None:
                raise loading.error
            assert loading.loaded is not None
            return loading.loaded
        try:
            stamp = self._shared.stamp
            asset = _asset(self._model(), version)
            if old is not None and asset["path"] == old.path:  # the stamp was for another version
                loading.loaded = _Loaded(old.model, old.meta, old.path, stamp)
            else:
                loading.loaded = self._load(asset, stamp)
            self._keep(version, loading.loaded)
            return loading.loaded
        except Exception as error:
            if old is not None:  # it serves well; a new one that does not load must not end that
                log_error(error)
                loading.loaded = _Loaded(old.model, old.meta, old.path, stamp)
                self._keep(version, loading.loaded)
                return loading.loaded
            loading.error = error
            raise
        finally:
            with self._lock:
                self._loading.pop(version, None)
            loading.done.set()

    def _load(self, asset: Mapping[str, Any], stamp: bytes) -> _Loaded:
        meta = View(asset, "ModelVersion")
        model = self._load_model_func(asset["path"], meta)
        return _Loaded(model, meta, asset["path"], stamp)

    def _keep(self, version: str, loaded: _Loaded) -> None:
        with self._lock:
            self._loaded[version] = loaded
            self._loaded.move_to_end(version)
            while len(self._loaded) > self._max_models:
                self._loaded.popitem(last=False)

    def _model(self) -> str:
        if self._model_name is None:
            from noronha.tools.shortcuts import sole_model

            self._model_name = sole_model("serving")
        return self._model_name

    def _answer_update(self, environ: Environ) -> tuple[str, bytes]:
        args = _arguments(environ)
        version = args.get("model_version")
        if not version:
            return BAD_REQUEST, _expected(args).encode()
        from noronha.tools import channel

        try:
            question: dict[str, Any] = {"what": "LazyModelServer", "model": self._model(), "name": version}
            staged = channel.ask("stage_model_version", **question)
            loaded = self._load(staged, b"")  # proves that it loads, before anybody else sees it
            channel.ask("adopt_model_version", **question, path=staged["path"])
            self._shared.renew_stamp()
            self._keep(version, _Loaded(loaded.model, loaded.meta, loaded.path, self._shared.stamp))
        except Exception as error:
            log_error(error)
            return _status_of(error), answers.encode({"err": _told(error)})
        return OK, b"OK"


class _Loaded:
    __slots__ = ("meta", "model", "path", "stamp")

    def __init__(self, model: Any, meta: View, path: str, stamp: bytes):
        self.model = model
        self.meta = meta
        self.path = path
        self.stamp = stamp


class _Loading:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.loaded: _Loaded | None = None
        self.error: Exception | None = None


def _asset(model: str, version: str) -> dict[str, Any]:
    """Returns the record of a version in this replica, fetched when it is not here."""
    from noronha.tools.shortcuts import _require

    return _require("mv", version, model)


def read_body(environ: Environ) -> str:
    """Returns a request's body as text, in the request's charset, UTF-8 by default; what does not fit is replaced."""
    length = environ.get("CONTENT_LENGTH")
    if length:
        body = environ["wsgi.input"].read(int(length))
    else:
        body = environ["wsgi.input"].read() if environ.get("HTTP_TRANSFER_ENCODING") else b""
    content_type = environ.get("CONTENT_TYPE", "")
    charset = "utf-8"
    if "charset=" in content_type.lower():
        charset = content_type.lower().split("charset=", 1)[1].split(";")[0].strip(" \"'") or charset
    try:
        return str(body.decode(charset, "replace"))
    except LookupError:
        return str(body.decode("utf-8", "replace"))


def _bare(result: Any) -> bytes:
    if isinstance(result, bytes):
        return result
    if isinstance(result, str):
        return str.encode(result)
    return answers.encode(result)


def _expected(args: Mapping[str, str]) -> str:
    return f"Expected model_version argument\nGot: {dict(args)}"


def _arguments(environ: Environ) -> dict[str, str]:
    """Returns a request's query arguments; of one that comes several times the last."""
    query = environ.get("QUERY_STRING")
    return dict(parse_qsl(query, keep_blank_values=True)) if query else {}


def _status_of(error: BaseException) -> str:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), ERROR)


def _told(error: BaseException) -> dict[str, Any]:
    cause = error.__cause__
    return {
        "Error": type(error).__name__, "Message": str(error), "cause": repr(cause) if cause is not None else None,
    }  # fmt: skip


def _taking(function: Callable[..., Any], most: int) -> Callable[..., Any]:
    """Returns a function of ``most`` arguments that passes on as many of them as ``function`` takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return function
    count = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    if count >= most:
        return function
    return lambda *arguments: function(*arguments[:count])


def log_error(error: BaseException) -> None:
    """Writes an error with its traceback to the replica's log."""
    import logging

    logging.getLogger("noronha.serving").error("%s: %s", type(error).__name__, error, exc_info=error)
