"""Everything at random against a model of a few dictionaries: names, revisions, aliases, references, crashes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from noronha.chassis.principals import Kind, Principal
from noronha.metadata import aliases, assets, kinds, models, owned, reading
from noronha.metadata.assets import VERSION
from noronha.metadata.backends.memory import MemoryRecords
from noronha.metadata.backends.sqlite import SqliteRecords
from noronha.metadata.catalog import Catalog
from noronha.rpc.errors import Aborted, AlreadyExists, FailedPrecondition, NoronhaError, NotFound
from noronha.v1 import metadata_pb2 as pb
from noronha.v1 import records_pb2, task_status_pb2, training_pb2

ME = Principal(Kind.OWNER, "me")
# Few names, of which some come often: most steps are to find something there.
VERSIONS = st.sampled_from(["v", "v", "v-1"])
ALIASES = st.sampled_from(["a", "a", "b"])
TRAININGS = st.sampled_from(["t", "t", "u"])
NUMBERS = st.sampled_from([1, 1, 1, 2, 2, 3])


class Everything(RuleBasedStateMachine):
    """The model: revisions and their trainings by version, targets by alias, state and publications by training."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp(prefix="nha"))
        self.records: Any = None
        self.versions: dict[str, dict[int, str]] = {}
        self.highest: dict[str, int] = {}
        self.aliases: dict[str, tuple[str, int]] = {}
        self.trainings: dict[str, tuple[bool, list[tuple[str, int]], list[tuple[str, int]]]] = {}
        """Whether it runs, what it uses, what it published."""

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def open(self) -> None:
        self.records = SqliteRecords(self.folder / "records.sqlite")

    @initialize(training=st.booleans())
    def begin(self, training: bool) -> None:
        self.run(self._begin())
        if training:
            self.train("t", "v", 1)
        self.create("v", "t" if training else "")
        self.create_alias("a", "v", 1)

    async def _begin(self) -> None:
        self.open()
        self.catalog = await Catalog.open(self.records, None)
        await models.create(self.catalog, ME, pb.CreateModelRequest(model_id="m"))
        from noronha.metadata import projects

        await projects.create(self.catalog, ME, pb.CreateProjectRequest(project_id="p"))

    def teardown(self) -> None:
        if self.records is not None:
            self.run(self.records.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.folder)

    def expect(self, call: Any, *refusals: tuple[bool, type[NoronhaError], str]) -> Any:
        """Runs a call, which must be refused for the first reason that holds, or succeed."""
        for holds, kind, reason in refusals:
            if holds:
                try:
                    self.run(call)
                except kind as error:
                    assert error.reason == reason, error
                    return None
                raise AssertionError(f"not refused with {reason}")
        return self.run(call)

    @staticmethod
    def name(version: str, revision: int | None = None) -> str:
        return f"models/m/versions/{version}" + (f"@{revision}" if revision else "")

    def exists(self, version: str, revision: int) -> bool:
        return revision in self.versions.get(version, {})

    @rule(version=VERSIONS, training=st.one_of(st.just(""), TRAININGS))
    def create(self, version: str, training: str) -> None:
        request = pb.CreateModelVersionRequest(parent="models/m", model_version_id=version)
        if training:
            request.model_version.training = f"projects/p/trainings/{training}"
        made = self.expect(
            assets.create(self.catalog, ME, VERSION, request),
            (version in self.versions and (not training or training in self.trainings), AlreadyExists, "ALREADY_EXISTS"),
            (bool(training) and training not in self.trainings and version not in self.versions, NotFound, "NOT_FOUND"),
        ) if not (version in self.versions and training and training not in self.trainings) else None  # fmt: skip
        if made is not None:
            self.highest[version] = self.highest.get(version, 0) + 1
            assert made.revision == self.highest[version], "a number is never used twice"
            self.versions[version] = {made.revision: training}

    @rule(version=VERSIONS, expected=st.one_of(st.just(0), NUMBERS))
    def publish(self, version: str, expected: int) -> None:
        request = pb.PublishModelVersionRequest(expected_revision=expected)
        request.model_version.name = self.name(version)
        request.model_version.details_json = "{}"
        newest = max(self.versions.get(version, {0: ""}))
        made = self.expect(
            assets.publish(self.catalog, ME, VERSION, request),
            (version not in self.versions, NotFound, "NOT_FOUND"),
            (expected not in (0, newest), Aborted, "STALE_REVISION"),
        )
        if made is not None:
            self.highest[version] += 1
            assert made.revision == self.highest[version]
            self.versions[version][made.revision] = self.versions[version][newest]

    def users(self, version: str, revision: int | None) -> bool:
        def meant(target: tuple[str, int]) -> bool:
            return target[0] == version and revision in (None, target[1])

        return any(meant(target) for target in self.aliases.values()) or any(
            running and any(meant(target) for target in uses) for running, uses, _ in self.trainings.values()
        )

    @rule(version=VERSIONS, revision=st.one_of(st.none(), NUMBERS), force=st.booleans())
    def delete(self, version: str, revision: int | None, force: bool) -> None:
        gone = version not in self.versions or (revision is not None and not self.exists(version, revision))
        done = self.expect(
            self._deleted(pb.DeleteModelVersionRequest(name=self.name(version, revision), force=force)),
            (gone, NotFound, "NOT_FOUND"),
            (not force and self.users(version, revision), FailedPrecondition, "IN_USE"),
        )
        if done:
            removed = [revision] if revision else list(self.versions[version])
            for each in removed:
                del self.versions[version][each]
            if not self.versions[version]:
                del self.versions[version]
            self.aliases = {
                alias: target for alias, target in self.aliases.items() if self.exists(*target) or target[0] != version
            }
            for _, _, published in self.trainings.values():
                published[:] = [each for each in published if each[0] != version or each[1] not in removed]

    async def _deleted(self, request: Any) -> bool:
        await assets.delete(self.catalog, ME, VERSION, request)
        return True

    @rule(alias=ALIASES, version=VERSIONS, revision=NUMBERS)
    def create_alias(self, alias: str, version: str, revision: int) -> None:
        request = pb.CreateAliasRequest(parent="models/m", alias_id=alias)
        request.alias.model_version = self.name(version, revision)
        if alias in self.aliases and not self.exists(version, revision):
            return  # refused either way
        made = self.expect(
            aliases.create(self.catalog, ME, request),
            (alias in self.aliases, AlreadyExists, "ALREADY_EXISTS"),
            (not self.exists(version, revision), NotFound, "NOT_FOUND"),
        )
        if made is not None:
            self.aliases[alias] = (version, revision)

    @rule(alias=ALIASES, version=VERSIONS, revision=NUMBERS, expected=NUMBERS)
    def move_alias(self, alias: str, version: str, revision: int, expected: int) -> None:
        request = pb.MoveAliasRequest(
            name=f"models/m/aliases/{alias}", model_version=self.name(version, revision),
            expected_model_version=self.name(version, expected),
        )  # fmt: skip
        moved = self.expect(
            aliases.move(self.catalog, ME, request),
            (alias not in self.aliases, NotFound, "NOT_FOUND"),
            (self.aliases.get(alias) != (version, expected), Aborted, "STALE_ALIAS"),
            (not self.exists(version, revision), NotFound, "NOT_FOUND"),
        )
        if moved is not None:
            self.aliases[alias] = (version, revision)

    def _training(self, training: str, state: int) -> Any:
        return training_pb2.Training(
            name=f"projects/p/trainings/{training}",
            status=task_status_pb2.TaskStatus(state=state),  # type: ignore[arg-type]
        )

    async def _record(self, **write: Any) -> Any:
        one = records_pb2.CommitRecordsRequest.Write()
        request = getattr(one, next(iter(write)))
        request.CopyFrom(next(iter(write.values())))
        return await owned.commit(self.catalog, ME, [one])

    @rule(training=TRAININGS, version=VERSIONS, revision=NUMBERS)
    def train(self, training: str, version: str, revision: int) -> None:
        request = records_pb2.CreateRecordRequest()
        request.resource.training.CopyFrom(self._training(training, 2))
        uses = [(version, revision)] if self.exists(version, revision) else []
        request.resource.training.pretrained.extend(self.name(*each) for each in uses)
        made = self.expect(self._record(create=request), (training in self.trainings, AlreadyExists, "ALREADY_EXISTS"))
        if made is not None:
            self.trainings[training] = (True, uses, [])

    @rule(training=TRAININGS, version=VERSIONS, revision=NUMBERS)
    def report(self, training: str, version: str, revision: int) -> None:
        if training not in self.trainings or not self.exists(version, revision):
            return
        published = self.trainings[training][2]
        published.append((version, revision))
        request = records_pb2.UpdateRecordRequest()
        request.resource.training.name = f"projects/p/trainings/{training}"
        request.resource.training.published.extend(self.name(*each) for each in published)
        self.run(self._record(update=request))

    @rule(training=TRAININGS)
    def end(self, training: str) -> None:
        request = records_pb2.UpdateRecordRequest()
        request.resource.training.CopyFrom(self._training(training, 3))
        made = self.expect(self._record(update=request), (training not in self.trainings, NotFound, "NOT_FOUND"))
        if made is not None:
            _, uses, published = self.trainings[training]
            self.trainings[training] = (False, uses, published)

    @rule(training=TRAININGS)
    def forget(self, training: str) -> None:
        request = records_pb2.DeleteRecordRequest(name=f"projects/p/trainings/{training}")
        made = self.expect(self._record(delete=request), (training not in self.trainings, NotFound, "NOT_FOUND"))
        if made is not None:
            del self.trainings[training]
            for revisions in self.versions.values():
                for revision, by in revisions.items():
                    revisions[revision] = "" if by == training else by

    @rule()
    def restart(self) -> None:
        self.run(self._restart())

    async def _restart(self) -> None:
        position = await self.records.position()
        await self.records.close()
        self.open()
        self.catalog = await Catalog.open(self.records, None)
        assert await self.records.position() == position

    @invariant()
    def what_is_kept_is_what_was_answered(self) -> None:
        if self.records is not None:
            self.run(self._look())

    async def _look(self) -> None:
        listed = await reading.list_page(
            self.catalog, ME, "model_version", pb.ListModelVersionsRequest(parent="models/m", all_revisions=True)
        )
        assert {(each.name, each.revision): each.training for each in listed.messages} == {
            (self.name(version), revision): f"projects/p/trainings/{training}" if training else ""
            for version, revisions in self.versions.items()
            for revision, training in revisions.items()
        }
        for version, revisions in self.versions.items():
            record = await self.records.get("default", self.name(version))
            assert record is not None and record.key.revision == max(revisions)
        found = await reading.list_page(self.catalog, ME, "alias", pb.ListAliasesRequest(parent="models/m"))
        assert {each.name.split("/")[-1]: each.model_version for each in found.messages} == {
            alias: self.name(*target) for alias, target in self.aliases.items()
        }
        found = await reading.list_page(self.catalog, ME, "training", pb.ListTrainingsRequest(parent="projects/p"))
        assert {each.name.split("/")[-1]: list(each.published) for each in found.messages} == {
            training: [self.name(*each) for each in published] for training, (_, _, published) in self.trainings.items()
        }
        for each in await self.records.below("default", "models/m/"):
            record = await self.records.get("default", each[0].name, each[0].revision)
            assert record is not None and record.version == each[1]
            assert kinds.read(each[0].kind, record.body).name == each[0].name


class EverythingInMemory(Everything):
    """The same on the reference backend, which a restart would empty."""

    def open(self) -> None:
        if self.records is None:
            self.records = MemoryRecords()

    @rule()
    def restart(self) -> None:
        pass


_SETTINGS = settings(
    max_examples=30, stateful_step_count=40, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestOnSqlite = Everything.TestCase
TestOnSqlite.settings = _SETTINGS
TestInMemory = EverythingInMemory.TestCase
TestInMemory.settings = _SETTINGS
