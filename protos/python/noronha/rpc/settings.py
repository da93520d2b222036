"""Settings: every key of ``nha.yaml`` with its type, its default and its meaning, in one place.

Both ends read the same file, so both share this module. A client takes the first of ``./nha.yaml`` and
``~/.nha/nha.yaml``; a mesh takes ``~/.nha/nha.yaml`` or the file it is told. In the environment,
``NHA_<SECTION>__<KEY>`` wins over the file. An unknown key is an error that names the nearest known one; a port is 1 to
65535, and no other number is below 0. Secrets never show in a repr.

Accepted as in 1.6 but without effect in this version, which has neither servers of its own nor containers: all of
``mongo``, ``file_store``, ``lightweight_store`` and ``docker``; of ``container_manager``, ``api_timeout``,
``namespace``, ``storage_class`` and ``nfs``; of ``web_server``, ``host`` and ``port``; of ``logger``, all but
``level``, ``directory`` and ``file_name``. Where one would change what is used (a database, Swarm), the mesh refuses to
start instead.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from noronha.rpc.errors import InvalidArgument

Check = Callable[[Any], Any]
"""Returns a value of its key's type as it is meant; raises ValueError, saying what it must be."""


def _one_of(*choices: str) -> Check:
    """The check of a key that takes one of a few words, in whatever case they are written."""

    def check(text: str) -> str:
        for choice in choices:
            if text.casefold() == choice.casefold():
                return choice
        raise ValueError(f"must be {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}")

    return check


_level = _one_of("DEBUG", "INFO", "WARN", "WARNING", "ERROR")
_ADDRESS = re.compile(r"unix:.+|(?:[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def _address(text: str) -> str:
    """The check of a key that says where a server is."""
    found = _ADDRESS.fullmatch(text)
    if text and (found is None or (found[1] and not 1 <= int(found[1]) <= 65535)):
        raise ValueError(f"must be host:port, such as 127.0.0.1:7401, or unix:/path, not {text!r}")
    return text


def _number(least: int, most: int | None = None) -> Check:
    """The check of a key that takes a number from ``least`` to ``most``; None, where the key takes it, stays None."""
    bounds = f"be at least {least}" if most is None else f"be {least} to {most}"

    def check(number: float | None) -> float | None:
        if number is not None and not (least <= number and (most is None or number <= most)):
            raise ValueError(f"must {bounds}, not {number}")
        if number == math.inf:
            raise ValueError(f"must be a finite number, not {number}")
        return number

    return check


_port = _number(1, 65535)
_amount = _number(0)


def _default_check(key: str, kind: Any) -> Check | None:
    """The check of a key that declares none: every number is a port, where the key is called so, or an amount."""
    if not {int, float} & {kind, *get_args(kind)}:
        return None
    return _port if key == "port" else _amount


def _client(default: Any, check: Check) -> Any:
    """Declares a key that clients read and that not every text is right for."""
    return field(default=default, metadata={"check": check})


def _mesh(default: Any, *, secret: bool = False, check: Check | None = None) -> Any:
    """Declares a key that the mesh reads once; the others are read by clients and travel in requests."""
    return field(default=default, metadata={"mesh": True, "secret": secret, "check": check}, repr=not secret)


@dataclass(frozen=True)
class Mesh:
    """How the mesh is found, and how it runs."""

    address: str = _client("", _address)
    """Client: where the mesh is, ``host:port`` or ``unix:/path``. Empty: the embedded one, started when needed."""
    token_file: str = ""
    """Client: file that holds the token for ``address``. Empty: none is sent."""
    state_dir: str = _mesh("~/.nha/mesh")
    """Folder that holds everything an embedded mesh keeps. Its socket lies in it, so the path must be short."""
    idle_stop: float = _mesh(1800.0)
    """Seconds without calls and without tasks after which an embedded mesh stops; 0 means never."""
    allowed_mounts: tuple[str, ...] = _mesh(("/",))
    """Folders below which users may mount; the default allows whatever the mesh's user can read."""
    grace: float = _mesh(10.0)
    """Seconds that calls in flight have when a server stops."""
    log_level: str = _mesh("INFO", check=_level)
    """Least level that the mesh's own log keeps: DEBUG, INFO, WARN, ERROR."""
    log_max_bytes: int = _mesh(16 << 20)
    """Size in bytes at which the mesh's log is rotated; one older file is kept."""


@dataclass(frozen=True)
class Backend:
    """Which backend a service uses."""

    backend: str = _mesh("")
    """URL of the backend, such as ``sqlite:`` or ``memory:``. Empty: chosen by the other keys."""


@dataclass(frozen=True)
class Runner:
    """How tasks run."""

    backend: str = _mesh("")
    """URL of the backend. Empty: ``process:`` where ``container_manager.type`` is ``local``."""
    max_log_bytes: int = _mesh(64 << 20)
    """Most bytes of log kept of one task; more is dropped from the middle with a note."""
    heartbeat_interval: float = _mesh(2.0)
    """Seconds between a task's heartbeats."""
    heartbeat_timeout: float = _mesh(15.0)
    """Seconds of silence after which the mesh looks whether a task is still there."""
    start_timeout: float = _mesh(300.0)
    """Seconds that a replica has to become ready."""
    grace: float = _mesh(10.0)
    """Seconds that a cancelled task has before it is ended by force."""


@dataclass(frozen=True)
class Router:
    """Where predictions come in."""

    native: bool = _mesh(True)
    """Whether Noronha runs the proxy itself."""
    host: str = _mesh("127.0.0.1")
    """Address that the proxy listens on, for the router and for the deployments' own ports."""
    port: int = _mesh(30080)
    """Port of the router."""
    concurrency: int = _mesh(0)
    """Worker threads of the proxy; 0 means one for each processor, at most 2."""
    request_timeout: float = _mesh(60.0)
    """Seconds that a prediction may take; 0 means no bound."""


@dataclass(frozen=True)
class Mongo:
    """MongoDB, for Metadata."""

    native: bool = _mesh(True)
    """Whether Noronha runs it itself."""
    host: str = _mesh("localhost")
    """Host name, address or connection URI."""
    port: int = _mesh(30017)
    """Port."""
    database: str = _mesh("nha_db")
    """Database, made when absent."""
    user: str = _mesh("")
    """User name."""
    pswd: str = _mesh("", secret=True)
    """Password."""
    tchest: str = _mesh("")
    """Treasure Chest that holds user and password instead."""
    write_concern: dict[str, Any] = field(
        default_factory=lambda: {"w": 1, "j": True, "wtimeout": 5}, metadata={"mesh": True}
    )
    """Write concern as in MongoDB's manual."""
    max_idle_time_ms: int | None = _mesh(None)
    """Milliseconds after which an idle connection is closed."""
    disk_allocation_mb: int = _mesh(1024)
    """Room for its data in MiB when native."""


@dataclass(frozen=True)
class FileStore:
    """The file manager, for Store."""

    native: bool = _mesh(True)
    """Whether Noronha runs it itself."""
    type: str = _mesh("artif", check=_one_of("artif", "nexus", "s3"))
    """``artif``, ``nexus`` or ``s3``."""
    host: str = _mesh("localhost")
    """Host name or address."""
    port: int = _mesh(30023)
    """Port."""
    user: str = _mesh("")
    """User name."""
    pswd: str = _mesh("", secret=True)
    """Password."""
    tchest: str = _mesh("")
    """Treasure Chest that holds user and password instead."""
    repository: str = _mesh("")
    """Repository or bucket; empty means ``example-repo-local`` for Artifactory."""
    use_ssl: bool = _mesh(False)
    """Whether the server speaks https."""
    check_certificate: bool = _mesh(True)
    """Whether its certificate is verified."""
    disk_allocation_mb: int = _mesh(102400)
    """Room for its data in MiB when native."""


@dataclass(frozen=True)
class LightweightStore:
    """The store for small files that must load fast."""

    enabled: bool = _mesh(False)
    """Whether it is used."""
    native: bool = _mesh(False)
    """Only false is supported."""
    type: str = _mesh("cass")
    """Only ``cass``, for Cassandra, is supported."""
    hosts: tuple[str, ...] = _mesh(("cassandra",))
    """Host names or addresses."""
    port: int = _mesh(9042)
    """Port."""
    keyspace: str = _mesh("nha_db")
    """Keyspace, made when absent."""
    replication_factor: int = _mesh(3)
    """Replication of a keyspace that is made."""


@dataclass(frozen=True)
class Docker:
    """The Docker engine, for Builder and Swarm."""

    daemon_address: str = _mesh("unix:/var/run/docker.sock")
    """Address of its socket."""
    target_registry: str | None = _mesh(None)
    """Registry that images are pushed to; none keeps them local."""
    registry_secret: str | None = _mesh(None)
    """Kubernetes secret that the cluster pulls with."""
    mock_mode: bool = _mesh(False)
    """Whether containers only wait instead of working, for trying things out."""


@dataclass(frozen=True)
class Healthcheck:
    """How replicas are probed."""

    enabled: bool = False
    """Whether a replica that fails is restarted."""
    start_period: float = 60
    """Seconds before probes count."""
    interval: float = 30
    """Seconds between probes."""
    timeout: float = 3
    """Seconds a replica has to answer."""
    retries: int = 3
    """Failures in a row after which a replica is restarted."""


@dataclass(frozen=True)
class Nfs:
    """The NFS server that shares files with tasks on Kubernetes."""

    server: str = _mesh("")
    """Host name or address."""
    path: str = _mesh("")
    """Folder on it."""


@dataclass(frozen=True)
class ContainerManager:
    """Where tasks run."""

    type: str = _mesh("local", check=_one_of("local", "swarm", "kube"))
    """``local``, ``swarm`` or ``kube``."""
    api_timeout: float | None = _mesh(None)
    """Seconds that it has to complete an action; none means 20 for swarm, 60 for kube."""
    resource_profiles: dict[str, Any] = field(default_factory=dict)
    """Resource profiles by name; ``nha-ide``, ``nha-train`` and ``nha-depl`` are the defaults of their sections."""
    healthcheck: Healthcheck = field(default_factory=Healthcheck)
    """How replicas are probed."""
    namespace: str = _mesh("default")
    """Kubernetes namespace."""
    storage_class: str = _mesh("standard")
    """Kubernetes storage class of the islands' volumes."""
    nfs: Nfs = field(default_factory=Nfs, metadata={"mesh": True})
    """NFS server on Kubernetes."""


@dataclass(frozen=True)
class Threads:
    """Threads of a replica's web server."""

    enabled: bool = False
    """Whether a worker uses several."""
    high_cpu: bool = False
    """Whether four per processor are used instead of two."""
    number: int | None = None
    """How many; wins over ``high_cpu``."""


@dataclass(frozen=True)
class WebServer:
    """How replicas serve; a notebook can override it."""

    type: str = _client("simple", _one_of("simple", "gunicorn"))
    """``simple`` or ``gunicorn``."""
    enable_debug: bool = False
    """Whether the server's log is verbose."""
    threads: Threads = field(default_factory=Threads)
    """Threads of a worker."""
    extra_conf: dict[str, Any] = field(default_factory=dict)
    """Further settings of Gunicorn."""
    host: str = "0.0.0.0"
    """Address inside a container."""
    port: int = 8080
    """Port inside a container."""


@dataclass(frozen=True)
class Project:
    """Which project is worked on."""

    working_project: str | None = None
    """Project used when neither an option nor the working directory says one."""


@dataclass(frozen=True)
class Logger:
    """How the command logs."""

    level: str = _client("INFO", _level)
    """ERROR, WARN, INFO or DEBUG."""
    pretty: bool = False
    """Whether values are printed over several lines."""
    directory: str = "~/.nha/logs"
    """Folder of log files."""
    file_name: str = "noronha.log"
    """Name of the log file."""
    max_bytes: int = 1048576
    """Size in bytes at which it is rotated."""
    bkp_count: int = 1
    """Older files that are kept."""
    join_root: bool = True
    """Whether messages of other libraries are kept as well."""
    background: bool = False
    """Whether the terminal stays silent."""


@dataclass(frozen=True)
class Settings:
    """All settings, by section."""

    project: Project = field(default_factory=Project)
    logger: Logger = field(default_factory=Logger)
    mesh: Mesh = field(default_factory=Mesh)
    metadata: Backend = field(default_factory=Backend)
    store: Backend = field(default_factory=Backend)
    builder: Backend = field(default_factory=Backend)
    runner: Runner = field(default_factory=Runner)
    router: Router = field(default_factory=Router)
    mongo: Mongo = field(default_factory=Mongo)
    file_store: FileStore = field(default_factory=FileStore)
    lightweight_store: LightweightStore = field(default_factory=LightweightStore)
    docker: Docker = field(default_factory=Docker)
    container_manager: ContainerManager = field(default_factory=ContainerManager)
    web_server: WebServer = field(default_factory=WebServer)
    origins: Mapping[str, str] = field(default_factory=dict)
    """Keys that are set, as ``section`` and ``section.key``, to where: a file, or a variable of the environment."""
    warnings: tuple[str, ...] = ()
    """What the user should know of the file, a line each."""

    @property
    def written(self) -> frozenset[str]:
        """Keys that a file or the environment set, as ``section`` and ``section.key``."""
        return frozenset(self.origins)

    @property
    def state_dir(self) -> Path:
        """Folder of the mesh's state, absolute."""
        return Path(os.path.abspath(os.path.expanduser(self.mesh.state_dir)))

    @property
    def socket_path(self) -> Path:
        """Socket of the embedded mesh."""
        return self.state_dir / "mesh.sock"

    def backend(self, service: str) -> str:
        """Returns the URL of a service's backend. Raises InvalidArgument ``BAD_SETTING`` where keys contradict."""
        chosen: str = getattr(self, service).backend if service != "router" else "envoy:"
        if chosen:
            return chosen
        manager = self.container_manager.type
        if manager != "local":
            raise bad(
                "container_manager.type",
                f"is {manager!r}, which this version does not run yet; remove it or set it to local",
            )
        sections = {"metadata": ("mongo", "sqlite:"), "store": ("file_store", "file:")}
        if service in sections:
            section, embedded = sections[service]
            if section not in self.written:
                return embedded
            if f"{section}.native" not in self.written or getattr(self, section).native:
                raise bad(f"{section}.native", "true needs swarm or kube; remove the section or set native: false")
            raise bad(section, "names a server of a kind that this version does not use yet; remove the section")
        return {"builder": "venv:", "runner": "process:"}[service]

    def fingerprint(self) -> dict[str, str]:
        """Returns the mesh keys as JSON, secrets left out; what clients compare their own file with."""
        import json

        found: dict[str, str] = {}
        for section in dataclasses.fields(self):
            value = getattr(self, section.name)
            if not dataclasses.is_dataclass(value):
                continue
            for key in dataclasses.fields(value):
                if key.metadata.get("mesh") and not key.metadata.get("secret"):
                    found[f"{section.name}.{key.name}"] = json.dumps(
                        getattr(value, key.name), default=dataclasses.asdict, sort_keys=True
                    )
        return found


RETIRED = {
    "container_manager.nodes": "it was never used",
    "container_manager.api_key": "it was never used",
    "lightweight_store.time_to_leave": "it was never used",
    "web_app.type": "there is one kind of web application",
    "predict.online": "it was never used",
    "mesh.secret": "the mesh makes its own key",
}
"""Keys of earlier releases that nothing uses any more: accepted, with a warning."""

MISPLACED = {
    "resource_profiles": "container_manager.resource_profiles",
    "nfs": "container_manager.nfs",
    "healthcheck": "container_manager.healthcheck",
}
"""Sections that earlier documentation printed one level too high: accepted there, with a warning."""


MISNOMERS = {"file_manager": "file_store", "database": "mongo"}
"""What people call sections that have another name: what a mistake is told."""


def bad(key: str, why: str) -> InvalidArgument:
    """Returns the error for a setting that cannot be."""
    return InvalidArgument(f"setting {key} {why}", reason="BAD_SETTING", violations=[(key, why)], key=key)


def load(file: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Returns the settings of a file (None for defaults) and of the environment (default ``os.environ``).

    Raises InvalidArgument ``BAD_SETTING`` for an unknown key, a wrong type, or a file that is not YAML.
    """
    raw: dict[str, Any] = {}
    warnings: list[str] = []
    origins: dict[str, str] = {}
    variables: dict[str, str] = {}
    if file is not None:
        raw = _read(file)
    for name, text in (os.environ if environ is None else environ).items():
        section, separator, key = name.removeprefix("NHA_").partition("__")
        if name.startswith("NHA_") and separator and key:
            target = raw.setdefault(section.lower(), {})
            if isinstance(target, dict):
                target[key.lower()] = _Text(text)
                variables[f"{section.lower()}.{key.lower()}"] = name
    for section, place in MISPLACED.items():
        if section in raw:
            warnings.append(f"{section} belongs under {place}; it is used as if it stood there")
            outer, key = place.split(".")
            raw.setdefault(outer, {}).setdefault(key, raw.pop(section))
    values: dict[str, Any] = {}
    hints = get_type_hints(Settings)
    sections = {each.name for each in dataclasses.fields(Settings)} - {"origins", "warnings"}
    for section, content in raw.items():
        if section not in sections:
            retired = [key for key in RETIRED if key.split(".")[0] == section]
            if retired:
                warnings.append(f"{section} is no longer used: {RETIRED[retired[0]]}")
                continue
            raise bad(section, f"is unknown{_nearest(section, sections)}")
        if content is None:
            continue
        if not isinstance(content, dict):
            raise bad(section, "must hold keys")
        keys = [f"{section}.{key}" for key in content]
        elsewhere = str(file) if file is not None else "the environment"
        origins.update((key, variables.get(key, elsewhere)) for key in keys)
        origins[section] = elsewhere
        values[section] = _section(hints[section], content, section, warnings)
    return Settings(**values, origins=origins, warnings=tuple(warnings))


def client_file(directory: Path | None = None) -> Path | None:
    """Returns the file that a client reads: ``./nha.yaml``, else ``~/.nha/nha.yaml``, else None."""
    for candidate in ((directory or Path.cwd()) / "nha.yaml", Path.home() / ".nha" / "nha.yaml"):
        if candidate.is_file():
            return candidate
    return None


def mesh_file() -> Path | None:
    """Returns the file that a mesh reads: ``~/.nha/nha.yaml``, or None."""
    candidate = Path.home() / ".nha" / "nha.yaml"
    return candidate if candidate.is_file() else None


class _Text(str):
    """A value from the environment: text until its key says otherwise."""


def _read(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise bad(str(file), f"is not YAML: {line}") from error
    except OSError as error:
        raise bad(str(file), f"cannot be read: {error.strerror}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise bad(str(file), "must hold sections such as 'router:'")
    return {str(key): value for key, value in content.items()}


def _nearest(name: str, known: set[str]) -> str:
    import difflib

    close = [MISNOMERS[name]] if name in MISNOMERS else difflib.get_close_matches(name, sorted(known), 1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def _section(kind: Any, content: dict[str, Any], path: str, warnings: list[str]) -> Any:
    hints = get_type_hints(kind)
    checks: dict[str, Check | None] = {
        each.name: each.metadata.get("check") or _default_check(each.name, hints[each.name])
        for each in dataclasses.fields(kind)
    }
    values: dict[str, Any] = {}
    for key, value in content.items():
        full = f"{path}.{key}"
        if key not in hints:
            if full in RETIRED:
                warnings.append(f"{full} is no longer used: {RETIRED[full]}")
                continue
            raise bad(full, f"is unknown{_nearest(str(key), set(hints))}")
        values[key] = _value(hints[key], value, full, warnings)
        check = checks[key]
        if check is not None:
            try:
                values[key] = check(values[key])
            except ValueError as error:
                raise bad(full, str(error)) from None
    return kind(**values)


def _value(kind: Any, value: Any, path: str, warnings: list[str]) -> Any:
    if isinstance(value, _Text):
        value = _from_text(kind, str(value))
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise bad(path, "must hold keys")
        return _section(kind, value, path, warnings)
    origin = get_origin(kind)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(each, str) for each in items):
            raise bad(path, "must be a list of texts")
        return tuple(items)
    if origin is dict:
        if not isinstance(value, dict):
            raise bad(path, "must hold keys")
        return value
    options = get_args(kind) if origin is not None else (kind,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is bool and isinstance(value, bool):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is str and isinstance(value, str):
            return value
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    raise bad(path, f"must be {' or '.join(wanted.get(option, 'null') for option in options)}, not {value!r}")


def _from_text(kind: Any, text: str) -> Any:
    """Returns what a text from the environment means: itself where a text is wanted, else what YAML reads in it."""
    if kind is str:
        return text
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if get_origin(kind) is tuple and isinstance(value, str):
        return [each.strip() for each in value.split(",") if each.strip()]
    return value
