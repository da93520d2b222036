"""What the trainings and deployments of one Runner share: its peers, its platform, its logs, and its way of writing."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from google.protobuf import field_mask_pb2

from noronha.chassis import principals
from noronha.chassis.mount import Context
from noronha.chassis.principals import Kind, Principal
from noronha.rpc import names
from noronha.rpc.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from noronha.rpc.settings import Settings
from noronha.runner.admission import Admission
from noronha.runner.backend import Platform
from noronha.runner.leases import Leases
from noronha.runner.logs import Logs
from noronha.runner.sessions import Session, insist
from noronha.v1 import records_pb2, resource_pb2

AWAY = (Unavailable, DeadlineExceeded, ResourceExhausted)
"""Errors that say that a peer is away, or its disk full, and that asking again later may help."""

PATIENCE = 20.0
"""Seconds that a call waits for a mesh that has just come back and still looks for what runs."""


class Owner:
    """Owns records of running work."""

    def __init__(self, context: Context, platform: Platform, logs: Logs, leases: Leases, admission: Admission) -> None:
        self.context = context
        self.peers = context.peers
        self.platform = platform
        self.logs = logs
        self.leases = leases
        self.admission = admission
        self.sessions: dict[tuple[str, str], Session] = {}
        """Tasks that run, by tenant and full name."""
        self.adopted = asyncio.Event()
        """Set once everything that ran before has been found again."""
        self._work: set[asyncio.Task[Any]] = set()
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    def alone(self, name: str) -> asyncio.Lock:
        """Returns the lock held while a record is created or adopted, so that nobody takes it on twice."""
        key = (principals.current().tenant, name)
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    @property
    def settings(self) -> Settings:
        """The settings."""
        return self.context.settings

    async def wait_until_adopted(self) -> None:
        """Waits until everything that ran before has been found again. Raises Unavailable ``STARTING``."""
        if not self.adopted.is_set():
            try:
                await asyncio.wait_for(self.adopted.wait(), PATIENCE)
            except asyncio.TimeoutError:
                why = "the mesh is still looking for what ran before it started; try again"
                raise Unavailable(why, reason="STARTING") from None

    def stopping(self) -> Unavailable:
        """Returns what is raised when the server goes before an answer has come to its end."""
        return Unavailable("this server is stopping; ask the next one", reason="STOPPING")

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Runs something beside the calls, as this service and for the tenant of the present call."""
        tenant = principals.current().tenant
        with acting(tenant):
            task = asyncio.get_running_loop().create_task(work, name=name)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def end(self) -> None:
        """Ends what runs beside the calls; tasks go on."""
        work = list(self._work)
        for each in work:
            each.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    def enlist(self, session: Session) -> None:
        """Makes a task's session known to the calls that it makes."""
        self.sessions[session.tenant, session.name] = session

    def dismiss(self, session: Session) -> None:
        """Forgets a session."""
        if self.sessions.get((session.tenant, session.name)) is session:
            del self.sessions[session.tenant, session.name]

    def token(self, name: str, models: list[str]) -> str:
        """Returns the token of a task."""
        project = "/".join(name.split("/")[:2])
        tenant = principals.current().tenant
        return self.context.tokens.mint(Principal(Kind.TASK, name, tenant, project, tuple(models)))

    async def write(self, resource: resource_pb2.Resource, paths: list[str], fence: int) -> resource_pb2.Resource:
        """Changes fields of a record. Raises NotFound, Aborted ``STALE_FENCE``."""
        request = records_pb2.UpdateRecordRequest(
            resource=resource, update_mask=field_mask_pb2.FieldMask(paths=paths), fence=fence
        )
        written: records_pb2.Record = await self.peers.records.UpdateRecord(request)
        return written.resource

    async def persist(self, action: Callable[[], Awaitable[None]]) -> None:
        """Repeats an action while a peer is away; gives up when the server stops."""
        await insist(action, self.context.stopping, AWAY)


@contextlib.contextmanager
def acting(tenant: str) -> Iterator[None]:
    """Acts as Runner itself, for a tenant."""
    before = principals.current()
    principals.become(Principal(Kind.SERVICE, "runner", tenant))
    try:
        yield
    finally:
        principals.become(before)


def project_of(name: str) -> str:
    """Returns the project of a resource that lies in one."""
    return names.join("project", names.parse(name).ids[0])
