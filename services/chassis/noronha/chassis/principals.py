"""Who calls, and what each may call.

A token is ``nha1.<payload>.<mac>``: base64url JSON and its HMAC-SHA256 under the mesh's key, so every server of a mesh
verifies it without asking anybody. On the embedded socket, which only its owner can open, no token means the owner.
``TABLE`` gives each rpc its kinds of principal; an rpc that is not in it cannot be called.
"""

from __future__ import annotations

import base64
import binascii
import contextvars
import enum
import hashlib
import hmac
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from noronha.rpc.errors import PermissionDenied, Unauthenticated

DEFAULT_TENANT = "default"
TENANT_HEADER = "noronha-tenant"
"""Header in which one service tells another whose tenant a call concerns; read from services only."""
_PREFIX = "nha1"


class Kind(enum.Enum):
    """Kinds of principal."""

    ANONYMOUS = "anonymous"
    USER = "user"
    OWNER = "owner"
    SERVICE = "service"
    TASK = "task"


@dataclass(frozen=True)
class Principal:
    """A caller that is known."""

    kind: Kind
    subject: str
    """Who it is: a user's name, a service's name, or the full name of a task's resource."""
    tenant: str = DEFAULT_TENANT
    project: str = ""
    """Tasks: the project they belong to, ``projects/{project}``."""
    models: tuple[str, ...] = ()
    """Tasks: models they may read and publish to, ``models/{model}``."""

    @property
    def identity(self) -> str:
        """What tells this principal from others: its kind and its subject."""
        kind = Kind.USER if self.kind is Kind.OWNER else self.kind
        return f"{kind.value}:{self.subject}"


ANONYMOUS = Principal(Kind.ANONYMOUS, "anonymous")

_current: contextvars.ContextVar[Principal] = contextvars.ContextVar("noronha_principal", default=ANONYMOUS)


def current() -> Principal:
    """Returns the principal of the call being served."""
    return _current.get()


def become(principal: Principal) -> contextvars.Token[Principal]:
    """Makes a principal the current one of this context; the interceptor does so for each call."""
    return _current.set(principal)


def load_key(state_dir: Path) -> bytes:
    """Returns the mesh's key, 32 bytes, made at the first start in a file that only its owner reads."""
    path = state_dir / "key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) == 32:
            return key
        path.unlink(missing_ok=True)  # cut short by a crash before any token could be made with it
        return load_key(state_dir)
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_bytes(32)
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


class Tokens:
    """Mints and verifies the mesh's tokens."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def _mac(self, payload: str) -> str:
        mac = hmac.new(self._key, payload.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()

    def mint(self, principal: Principal, *, lifetime: float | None = None) -> str:
        """Returns a token for a principal; ``lifetime`` in seconds, none for one that does not run out."""
        content: dict[str, object] = {"kind": principal.kind.value, "subject": principal.subject}
        if principal.tenant != DEFAULT_TENANT:
            content["tenant"] = principal.tenant
        if principal.project:
            content["project"] = principal.project
        if principal.models:
            content["models"] = list(principal.models)
        if lifetime is not None:
            content["expires"] = int(time.time() + lifetime)
        text = json.dumps(content, separators=(",", ":"), sort_keys=True)
        payload = base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
        return f"{_PREFIX}.{payload}.{self._mac(payload)}"

    def verify(self, token: str) -> Principal:
        """Returns the principal of a token. Raises Unauthenticated ``BAD_TOKEN`` or ``TOKEN_EXPIRED``."""
        wrong = Unauthenticated("the token is not one of this mesh; ask its owner for one", reason="BAD_TOKEN")
        try:
            prefix, payload, mac = token.split(".")
            genuine = prefix == _PREFIX and hmac.compare_digest(mac.encode(), self._mac(payload).encode())
        except (ValueError, UnicodeEncodeError):
            raise wrong from None
        if not genuine:
            raise wrong
        try:
            content = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            principal = Principal(
                Kind(content["kind"]),
                content["subject"],
                content.get("tenant", DEFAULT_TENANT),
                content.get("project", ""),
                tuple(content.get("models", ())),
            )
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise wrong from None
        expires = content.get("expires")
        if expires is not None and time.time() > expires:
            raise Unauthenticated("the token has expired; ask the mesh's owner for another", reason="TOKEN_EXPIRED")
        return principal


_ANY = frozenset(Kind)
_KNOWN = frozenset({Kind.USER, Kind.OWNER, Kind.SERVICE, Kind.TASK})
_PEOPLE = frozenset({Kind.USER, Kind.OWNER, Kind.SERVICE})
_OWNER = frozenset({Kind.OWNER})
_SERVICE = frozenset({Kind.SERVICE})
_TASK = frozenset({Kind.TASK})


def _methods(service: str, kinds: frozenset[Kind], *methods: str) -> dict[str, frozenset[Kind]]:
    return {f"/{service}/{method}": kinds for method in methods}


TABLE: dict[str, frozenset[Kind]] = {
    **_methods("grpc.health.v1.Health", _ANY, "Check", "Watch", "List"),
    **_methods("grpc.reflection.v1alpha.ServerReflection", _PEOPLE, "ServerReflectionInfo"),
    **_methods("noronha.v1.Mesh", _KNOWN, "GetInfo"),
    **_methods("noronha.v1.Mesh", _OWNER, "Shutdown"),
    **_methods(
        "noronha.v1.Metadata", _KNOWN,
        "GetProject", "GetModel", "GetModelVersion", "ListModelVersions", "CreateModelVersion", "PublishModelVersion",
        "GetDataset", "ListDatasets", "GetAlias", "ListAliases", "GetTraining", "GetBuild", "GetDeployment",
    ),
    **_methods(
        "noronha.v1.Metadata", _PEOPLE,
        "ListProjects", "CreateProject", "UpdateProject", "DeleteProject",
        "ListModels", "CreateModel", "UpdateModel", "DeleteModel",
        "DeleteModelVersion", "CreateDataset", "PublishDataset", "DeleteDataset",
        "CreateAlias", "MoveAlias", "DeleteAlias",
        "ListBuilds", "ListTrainings", "ListDeployments", "GetDeploymentRevision", "ListDeploymentRevisions",
        "ListReplicas", "GetTraffic", "GetNotebook", "ListNotebooks",
        "GetChest", "ListChests", "CreateChest", "UpdateChest", "DeleteChest", "GetIsland", "ListIslands",
        "SearchResources", "GetLineage", "Watch",
    ),
    **_methods(
        "noronha.v1.Records", _SERVICE,
        "CreateRecord", "UpdateRecord", "DeleteRecord", "CommitRecords", "AcquireLease", "ReleaseLease",
        "ListReferencedDigests",
    ),
    **_methods("noronha.v1.Builder", _PEOPLE, "CreateBuild", "CancelBuild", "DeleteBuild", "TailLogs"),
    **_methods(
        "noronha.v1.Runner", _PEOPLE,
        "CreateTraining", "CancelTraining", "DeleteTraining",
        "CreateDeployment", "UpdateDeployment", "RollbackDeployment", "DeleteDeployment",
        "CreateNotebook", "CancelNotebook", "DeleteNotebook", "SetIsland", "DeleteIsland", "TailLogs",
    ),
    **_methods(
        "noronha.v1.Tasks", _TASK,
        "GetAssignment", "Heartbeat", "ReportProgress", "AppendOutput", "ReportPublished", "ReportOutcome",
        "WatchCommands",
    ),
    **_methods(
        "noronha.v1.Store", _KNOWN, "OpenUpload", "GetUpload", "WriteBlobs", "AbortUpload", "ReadBlob", "StatBlobs"
    ),
    **_methods("noronha.v1.Store", _SERVICE, "SealUpload", "DeleteBlobs"),
    **_methods("noronha.v1.Store", _OWNER, "CollectGarbage"),
    **_methods("noronha.v1.Router", _PEOPLE, "UpdateTraffic", "DeleteTraffic", "GetProxy"),
    **_methods("noronha.v1.Router", _SERVICE, "WaitForRoutes"),
    **_methods("envoy.service.discovery.v3.AggregatedDiscoveryService", _SERVICE, "StreamAggregatedResources"),
}  # fmt: skip
"""Who may call what, by the path of the rpc."""


def authorize(method: str, principal: Principal) -> None:
    """Raises PermissionDenied ``NOT_ALLOWED`` unless the table lets it call, Unauthenticated when it is nobody."""
    if principal.kind in TABLE.get(method, frozenset()):
        return
    name = method.rpartition("/")[2]
    if principal.kind is Kind.ANONYMOUS:
        raise Unauthenticated(f"{name} needs a token; set mesh.token_file", reason="NO_TOKEN", method=name)
    kind = principal.kind.value
    raise PermissionDenied(
        f"{name} is not for callers of kind {kind}", reason="NOT_ALLOWED", method=name, principal=kind
    )
