"""Watches: what they tell, when they end, and where they go on."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest

from noronha.chassis.principals import Kind, Principal
from noronha.metadata import watch as watch_module
from noronha.rpc.errors import InvalidArgument, OutOfRange
from noronha.v1 import metadata_pb2, task_status_pb2, training_pb2

pb = metadata_pb2
T = "projects/p/trainings/t"


def told(step: Any) -> str:
    """Says in short what a step of a watch told."""
    if step.WhichOneof("step") == "changed":
        resource = getattr(step.changed, step.changed.WhichOneof("kind"))
        revision = (
            getattr(resource, "revision", 0) if step.changed.WhichOneof("kind") in ("model_version", "build") else 0
        )
        return f"+{resource.name}@{revision}" if revision else f"+{resource.name}"
    return f"-{step.deleted}" if step.WhichOneof("step") == "deleted" else "bookmark"


class Follower:
    """One open watch."""

    def __init__(self, caller: Any, *names: str, **more: Any) -> None:
        self.steps: list[Any] = []
        self._call = caller.metadata.Watch(pb.WatchRequest(names=names, **more))
        self._arrived = asyncio.Event()
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for step in self._call:
            self.steps.append(step)
            self._arrived.set()

    @property
    def told(self) -> list[str]:
        return [told(step) for step in self.steps]

    async def until(self, wanted: str) -> Any:
        """Waits until something was told and returns the step."""
        return await self.until_step(lambda step: told(step) == wanted)

    async def until_step(self, wanted: Callable[[Any], bool]) -> Any:
        """Waits for a step and returns it."""

        async def seen() -> Any:
            while True:
                self._arrived.clear()
                for step in reversed(self.steps):
                    if wanted(step):
                        return step
                if self.task.done():
                    self.task.result()
                    raise AssertionError(f"ended after {self.told}")
                waiting = asyncio.create_task(self._arrived.wait())
                await asyncio.wait({waiting, self.task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()

        return await asyncio.wait_for(seen(), 20)

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_the_present_a_bookmark_and_changes(mesh: Any) -> None:
    await mesh.model("a")
    await mesh.model("b")
    await mesh.project()
    async with Follower(mesh.owner, "models/-") as follower:
        await follower.until("bookmark")
        assert follower.told == ["+models/a", "+models/b", "bookmark"]
        assert [bool(step.resume_token) for step in follower.steps] == [False, False, True]
        await mesh.model("c")
        await mesh.project("q")
        step = await follower.until("+models/c")
        assert step.HasField("time") and step.resume_token
        await mesh.owner.metadata.DeleteModel(pb.DeleteModelRequest(name="models/a"))
        await follower.until("-models/a")
        assert "+projects/q" not in follower.told


async def test_a_watch_goes_on_where_it_broke(mesh: Any) -> None:
    async with Follower(mesh.owner, "models/-") as follower:
        bookmark = await follower.until("bookmark")
    for each in "abc":
        await mesh.model(each)
    await mesh.owner.metadata.DeleteModel(pb.DeleteModelRequest(name="models/b"))
    async with Follower(mesh.owner, "models/-", resume_token=bookmark.resume_token) as follower:
        await follower.until("-models/b")
        assert "+models/b" not in follower.told, "what is over by now is skipped"
        one = await follower.until("+models/c")
    assert [each for each in follower.told if each != "bookmark"][:3] == ["+models/a", "+models/c", "-models/b"]
    async with Follower(mesh.owner, "models/-", resume_token=one.resume_token) as follower:
        await follower.until("-models/b")
        assert "+models/a" not in follower.told and "+models/c" not in follower.told


async def test_tokens_that_lead_nowhere(mesh: Any) -> None:
    async with Follower(mesh.owner, "models/-") as follower:
        token = (await follower.until("bookmark")).resume_token
    journal, _, position = base64.urlsafe_b64decode(token).decode().partition(":")
    for bad, kind, reason in (
        ("nonsense", InvalidArgument, "BAD_RESUME_TOKEN"),
        (base64.urlsafe_b64encode(b"x").decode(), InvalidArgument, "BAD_RESUME_TOKEN"),
        (base64.urlsafe_b64encode(f"{journal}:-1".encode()).decode(), InvalidArgument, "BAD_RESUME_TOKEN"),
        (base64.urlsafe_b64encode(f"other:{position}".encode()).decode(), OutOfRange, "RESUME_TOKEN_TOO_OLD"),
        (base64.urlsafe_b64encode(f"{journal}:99999".encode()).decode(), OutOfRange, "RESUME_TOKEN_TOO_OLD"),
    ):
        follower = Follower(mesh.owner, "models/-", resume_token=bad)
        with pytest.raises(kind) as caught:
            await asyncio.wait_for(follower.task, 20)
        assert caught.value.reason == reason


async def test_what_cannot_be_watched(mesh: Any) -> None:
    for names, reason in (
        ([], "BAD_NAMES"), (["models/-"] * 101, "BAD_NAMES"), (["things/x"], "BAD_NAME"), (["models/a_b"], "BAD_NAME"),
        (["models/-@1"], "BAD_NAME"),
    ):  # fmt: skip
        follower = Follower(mesh.owner, *names)
        with pytest.raises(InvalidArgument) as caught:
            await asyncio.wait_for(follower.task, 20)
        assert caught.value.reason == reason
    follower = Follower(mesh.owner, "models/-", filter='{"$where": 1}')
    with pytest.raises(InvalidArgument):
        await asyncio.wait_for(follower.task, 20)


async def test_what_stops_matching_is_told_as_deleted(mesh: Any) -> None:
    await mesh.project()
    await mesh.training(state=2)
    await mesh.training("projects/p/trainings/pending", state=1)
    async with Follower(mesh.owner, "projects/-/trainings/-", filter='{"status.state": "RUNNING"}') as follower:
        await follower.until("bookmark")
        assert follower.told == [f"+{T}", "bookmark"]
        running = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.RUNNING)
        await mesh.service.change(
            "training", training_pb2.Training(name="projects/p/trainings/pending", status=running)
        )
        await follower.until("+projects/p/trainings/pending")
        ended = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.SUCCEEDED)
        await mesh.service.change("training", training_pb2.Training(name=T, status=ended))
        await follower.until(f"-{T}")


async def test_several_names_and_shapes(mesh: Any) -> None:
    await mesh.model()
    await mesh.project()
    await mesh.project("q")
    await mesh.training("projects/p/trainings/t")
    await mesh.training("projects/q/trainings/t")
    for _ in range(2):
        await mesh.owner.publish("models/m/versions/v", create=_ == 0)
    names = ("projects/-/trainings/t", "projects/q/trainings/-", "models/m/versions/v", "projects/p")
    async with Follower(mesh.owner, *names) as follower:
        await follower.until("bookmark")
        assert sorted(follower.told[:-1]) == [
            "+models/m/versions/v@1", "+models/m/versions/v@2", "+projects/p", "+projects/p/trainings/t",
            "+projects/q/trainings/t",
        ]  # fmt: skip
        await mesh.owner.metadata.DeleteModelVersion(pb.DeleteModelVersionRequest(name="models/m/versions/v@1"))
        await follower.until("-models/m/versions/v@1")


async def test_the_watch_of_one_task_ends_with_it(mesh: Any) -> None:
    await mesh.project()
    await mesh.training()
    ended = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.FAILED)
    async with Follower(mesh.owner, T) as follower:
        await follower.until("bookmark")
        await mesh.service.change("training", training_pb2.Training(name=T, status=ended))
        await asyncio.wait_for(follower.task, 20)
        assert follower.steps[-1].changed.training.status.state == task_status_pb2.TaskStatus.FAILED
    async with Follower(mesh.owner, T) as follower:
        await asyncio.wait_for(follower.task, 20)
        assert follower.told == [f"+{T}", "bookmark"]
    await mesh.build("projects/p/builds/x", state=3)
    await mesh.build("projects/p/builds/x", state=2)
    async with Follower(mesh.owner, "projects/p/builds/x") as follower:
        await follower.until("bookmark")
        assert follower.told == ["+projects/p/builds/x@2", "bookmark"], "of a tag, the newest build"
        await mesh.service.remove("projects/p/builds/x@2")
        await asyncio.wait_for(follower.task, 20)


async def test_a_task_that_ended_while_nobody_looked_is_told_before_its_watch_ends(mesh: Any) -> None:
    await mesh.project()
    await mesh.training()
    async with Follower(mesh.owner, T) as follower:
        bookmark = await follower.until("bookmark")
    ended = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.FAILED)
    await mesh.service.change("training", training_pb2.Training(name=T, status=ended))
    async with Follower(mesh.owner, T, resume_token=bookmark.resume_token) as follower:
        await asyncio.wait_for(follower.task, 20)
        assert follower.steps[-1].changed.training.status.state == task_status_pb2.TaskStatus.FAILED


async def test_nobody_sees_another_tenant_or_anothers_chest(mesh: Any) -> None:
    other = mesh.caller(Principal(Kind.USER, "other", tenant="another"))
    neighbour = mesh.caller(Principal(Kind.USER, "neighbour"))
    async with Follower(other, "models/-") as far, Follower(neighbour, "chests/-", "models/-") as near:
        await far.until("bookmark")
        await near.until("bookmark")
        await mesh.owner.metadata.CreateChest(pb.CreateChestRequest(chest_id="c"))
        await mesh.owner.metadata.DeleteChest(pb.DeleteChestRequest(name="chests/c"))
        await mesh.model("mine")
        await other.metadata.CreateModel(pb.CreateModelRequest(model_id="theirs"))
        await far.until("+models/theirs")
        await near.until("+models/mine")
        assert "+models/mine" not in far.told
        assert not [each for each in near.told if "chests" in each]


async def test_bookmarks_come_by_themselves(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "BOOKMARK_SECONDS", 0.05)
    async with Follower(mesh.owner, "models/-") as follower:
        first = await follower.until("bookmark")
        await mesh.project()

        await follower.until_step(lambda step: step.resume_token != first.resume_token)
        assert set(follower.told) == {"bookmark"}


async def test_a_slow_reader_sees_the_last_state(mesh: Any) -> None:
    await mesh.project()
    await mesh.training()
    request = pb.WatchRequest(names=["projects/p/trainings/-"])
    steps = mesh.owner.metadata.Watch(request).__aiter__()
    assert told(await steps.__anext__()) == f"+{T}"
    for each in range(100):
        progress = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.RUNNING, progress=each / 100)
        await mesh.service.change("training", training_pb2.Training(name=T, status=progress))
    await mesh.service.remove(T)

    async def last() -> None:
        async for step in steps:
            if told(step) == f"-{T}":
                return

    await asyncio.wait_for(last(), 20)
    await steps.aclose()


async def test_watches_end_when_the_server_stops(meshes: Any) -> None:
    async with meshes("memory:") as mesh:
        follower = Follower(mesh.owner, "models/-")
        await follower.until("bookmark")
        await mesh.stop()
        await asyncio.wait_for(follower.task, 20)  # by itself, without an error
