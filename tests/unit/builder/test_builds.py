"""The life of builds, on a server that carries Metadata, Store and Builder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf import duration_pb2, field_mask_pb2

from noronha.builder.commands import MARK
from noronha.chassis import places
from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.rpc.dial import dial, new_request_id
from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    NotFound,
    Unimplemented,
)
from noronha.v1 import (
    builder_pb2,
    builder_pb2_grpc,
    log_pb2,
    metadata_pb2,
    metadata_pb2_grpc,
    project_pb2,
    records_pb2,
    records_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
)
from noronha.v1.build_pb2 import Build, Source
from noronha.v1.file_pb2 import File
from noronha.v1.resource_pb2 import Resource
from noronha.v1.task_status_pb2 import TaskStatus
from noronha.v1.training_pb2 import Training
from tests.waiting import until

PROJECT = {"requirements.txt": "colorama==0.4.6\n", "notebooks/train.ipynb": "{}"}
SLOW = {
    "requirements.txt": "./package\n",
    "package/pyproject.toml": (
        '[build-system]\nrequires = []\nbuild-backend = "slow"\nbackend-path = ["."]\n[project]\nname = "slow"\nversion = "1"\n'
    ),
    "package/slow.py": (
        "import os, pathlib, subprocess, sys, time\n"
        "gate = pathlib.Path(os.environ['NORONHA_TEST_GATE'])\n"
        "if not gate.exists():\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "    time.sleep(600)\n"
        "def build_wheel(folder, settings=None, metadata=None):\n"
        "    import zipfile\n"
        "    name = 'slow-1-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(os.path.join(folder, name), 'w') as archive:\n"
        "        archive.writestr('slow-1.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: slow\\nVersion: 1\\n')\n"
        "        archive.writestr('slow-1.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        archive.writestr('slow-1.dist-info/RECORD', '')\n"
        "    return name\n"
    ),
}
"""A project whose installation never ends, and hides a process, until a file named by the test exists."""


class Server:
    """A mesh without Runner and Router, in a process of its own, which can be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "m"
        self.gate = root / "gate"
        self.process: subprocess.Popen[bytes] | None = None
        self._channels: list[Any] = []

    def start(self) -> None:
        socket = self.state / "mesh.sock"
        address = self.root / "address"
        address.unlink(missing_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "noronha.chassis", "metadata", "store", "builder", "--state-dir", str(self.state),
             "--listen", f"unix:{socket}", "--address-file", str(address)],
            env={**environment, "HOME": str(self.root), "NORONHA_TEST_GATE": str(self.gate),
                 "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))},
        )  # fmt: skip
        until(
            lambda: address.exists() or self.process is None or self.process.poll() is not None, "a server that answers"
        )
        assert address.exists()
        channel = dial(f"unix:{socket}")
        tokens = Tokens((self.state / "key").read_bytes())
        trusted = dial(f"unix:{socket}", token=tokens.mint(Principal(Kind.SERVICE, "runner")))
        someone = dial(f"unix:{socket}", token=tokens.mint(Principal(Kind.USER, "someone")))
        self._channels = [channel, trusted, someone]
        self.metadata = metadata_pb2_grpc.MetadataStub(channel)
        self.store = store_pb2_grpc.StoreStub(channel)
        self.builder = builder_pb2_grpc.BuilderStub(channel)
        self.records = records_pb2_grpc.RecordsStub(trusted)
        self.someone = builder_pb2_grpc.BuilderStub(someone)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        for channel in self._channels:
            channel.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    # What the tests do with it

    def project(self, **fields: Any) -> str:
        name = f"p-{uuid.uuid4().hex[:8]}"
        created = self.metadata.CreateProject(
            metadata_pb2.CreateProjectRequest(project_id=name, project=project_pb2.Project(**fields))
        )
        return str(created.name)

    def upload(self, files: Mapping[str, str]) -> tuple[str, list[File]]:
        contents = {path: text.encode() for path, text in files.items()}
        described = [
            File(path=path, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size_bytes=len(data))
            for path, data in contents.items()
        ]
        by_digest = {file.digest: contents[file.path] for file in described}
        entries = [store_pb2.Blob(digest=digest, size_bytes=len(data)) for digest, data in by_digest.items()]
        opened = self.store.OpenUpload(store_pb2.OpenUploadRequest(entries=entries, request_id=new_request_id()))
        requests = [
            store_pb2.WriteBlobsRequest(
                upload=opened.upload,
                digest=each.digest,
                data=by_digest[each.digest],
                crc32=zlib.crc32(by_digest[each.digest]),
            )
            for each in opened.missing
        ]
        if requests:
            for _ in self.store.WriteBlobs(iter(requests)):
                pass
        return opened.upload, described

    def request(self, project: str, tag: str = "latest", files: Mapping[str, str] = PROJECT, **fields: Any) -> Any:
        upload, described = self.upload(files)
        source = Source(origin=Source.LOCAL, upload=upload)
        return builder_pb2.CreateBuildRequest(
            parent=project,
            build_id=tag,
            build=Build(source=source, **fields),
            files=described,
            request_id=new_request_id(),
        )

    def get(self, name: str) -> Build:
        return self.metadata.GetBuild(metadata_pb2.GetBuildRequest(name=name))

    def ended(self, build: Build, seconds: float = 90) -> Build:
        full = f"{build.name}@{build.revision}"
        done = (TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED)
        until(lambda: self.get(full).status.state in done, f"the end of {full}", seconds)
        return self.get(full)

    def build(self, project: str, tag: str = "latest", files: Mapping[str, str] = PROJECT, **fields: Any) -> Build:
        return self.ended(self.builder.CreateBuild(self.request(project, tag, files, **fields)))

    def log(self, name: str, **options: Any) -> str:
        answers = self.builder.TailLogs(log_pb2.TailLogsRequest(name=name, **options))
        return b"".join(answer.data for answer in answers).decode()


def at_work(server: Server) -> list[psutil.Process]:
    """Returns the processes of builds that belong to this server."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if MARK in environment and environment.get("NORONHA_TEST_GATE") == str(server.gate):
                found.append(process)
    return found


@contextlib.contextmanager
def served() -> Iterator[Server]:
    root = Path(tempfile.mkdtemp(prefix="nha-b-"))
    server = Server(root)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        left = at_work(server)
        for process in left:
            process.kill()
        shutil.rmtree(root)
        assert left == []


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with served() as found:
        yield found


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server that a test may kill."""
    with served() as found:
        yield found


def test_a_folder_is_built_and_found_by_its_digests(server: Server) -> None:
    build = server.build(server.project(), labels={"a": "b"})
    assert build.status.state == TaskStatus.SUCCEEDED, build.status
    assert (build.revision, build.status.progress, dict(build.labels)) == (1, 1.0, {"a": "b"})
    assert [file.path for file in build.source.files] == sorted(PROJECT)
    assert build.source.upload == ""
    assert build.HasField("build_time")
    assert places.environment_python(server.state, build.artifact.environment_digest).exists()
    assert (
        places.source_folder(server.state, build.artifact.source_digest) / "notebooks" / "train.ipynb"
    ).read_text() == "{}"
    assert len(build.notices) == 1
    assert "no Dockerfile" in build.notices[0]


def test_a_tag_built_again_is_its_next_revision_and_a_failure_leaves_the_name_where_it_was(server: Server) -> None:
    project = server.project()
    first = server.build(project)
    second = server.build(project, files={**PROJECT, "more.py": ""})
    failed = server.build(project, files={"requirements.txt": "colorama==99\n"})
    assert [first.revision, second.revision, failed.revision] == [1, 2, 3]
    assert failed.status.state == TaskStatus.FAILED
    assert failed.status.reason == "REQUIREMENTS_FAILED"
    assert "colorama" in failed.status.error.message
    assert not failed.HasField("artifact")
    assert server.get(first.name).revision == 2
    assert places.environment_python(server.state, first.artifact.environment_digest).exists()


def test_the_log_is_kept_read_by_position_and_followed_to_its_end(server: Server) -> None:
    project = server.project()
    created = server.builder.CreateBuild(server.request(project, no_cache=True))
    full = f"{created.name}@{created.revision}"
    followed = server.log(full, follow=True)
    assert server.get(full).status.state == TaskStatus.SUCCEEDED
    _, project_id, _, tag = created.name.split("/")
    assert followed.startswith(f"building {project_id}:{tag}@1\n")
    assert "colorama==0.4.6" in followed
    assert followed.endswith("built\n")
    assert server.log(created.name) == followed
    assert server.log(full, tail_lines=1) == "built\n"
    answers = list(server.builder.TailLogs(log_pb2.TailLogsRequest(name=full)))
    assert server.log(full, position=answers[-1].position) == ""
    with pytest.raises(InvalidArgument) as caught:
        server.log(full, position="nonsense")
    assert caught.value.reason == "BAD_POSITION"
    with pytest.raises(NotFound):
        server.log(f"{project}/builds/never")


def test_a_repeated_request_starts_nothing_new(server: Server) -> None:
    project = server.project()
    request = server.request(project)
    first = server.builder.CreateBuild(request)
    again = server.builder.CreateBuild(request)
    assert again.revision == first.revision == 1
    server.ended(first)
    late = server.builder.CreateBuild(request)
    assert late.revision == 1
    request.build.no_cache = True
    with pytest.raises(AlreadyExists) as caught:
        server.builder.CreateBuild(request)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert server.build(project).revision == 2


@pytest.mark.parametrize(
    "tag", ["", ".", "-a", ".a", "a b", "x:y", "../../x", "a/b", "a" * 129, "\u00e4", "a\n", "a@1", "\u0430"]
)
def test_tags_follow_dockers_grammar(server: Server, tag: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        server.builder.CreateBuild(builder_pb2.CreateBuildRequest(parent="projects/p", build_id=tag))
    assert caught.value.reason == "BAD_NAME"


@pytest.mark.parametrize("tag", ["a_b", "_", "1.0-rc_1", "A-b1", "a--b", "a" * 128])
def test_usual_tags_are_taken(server: Server, tag: str) -> None:
    project = server.project()
    build = server.build(project, tag)
    assert build.name == f"{project}/builds/{tag}"
    assert build.status.state == TaskStatus.SUCCEEDED


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../b", "a//b", ".", "", "a\nb", "a\\b", "a\x00b", "x" * 1025, "a/./b"]
)
def test_paths_that_could_leave_the_project_are_refused(server: Server, path: str) -> None:
    request = server.request(server.project())
    request.files[0].path = path
    with pytest.raises(InvalidArgument) as caught:
        server.builder.CreateBuild(request)
    assert caught.value.reason == "BAD_PATH"


def test_a_path_is_there_once_and_is_a_file_or_a_folder(server: Server) -> None:
    request = server.request(server.project())
    request.files.add(path=request.files[0].path, digest=request.files[0].digest)
    with pytest.raises(InvalidArgument) as caught:
        server.builder.CreateBuild(request)
    assert caught.value.reason == "DUPLICATE_PATH"
    del request.files[-1]
    request.files.add(path="notebooks", digest=request.files[0].digest)
    with pytest.raises(InvalidArgument) as caught:
        server.builder.CreateBuild(request)
    assert caught.value.reason == "DUPLICATE_PATH"


def test_only_what_the_upload_holds_can_be_built(server: Server) -> None:
    project = server.project()
    _, described = server.upload({"secret.txt": uuid.uuid4().hex})
    request = server.request(project)
    request.files.extend(described)
    with pytest.raises(FailedPrecondition) as caught:
        server.builder.CreateBuild(request)
    assert caught.value.reason == "BLOB_NOT_HELD"
    request = server.request(project)
    digest = hashlib.sha256(uuid.uuid4().bytes).hexdigest()
    opened = server.store.OpenUpload(
        store_pb2.OpenUploadRequest(entries=[store_pb2.Blob(digest=f"sha256:{digest}", size_bytes=16)])
    )
    request.build.source.upload = opened.upload
    with pytest.raises(FailedPrecondition) as caught:
        server.builder.CreateBuild(request)
    assert caught.value.reason == "UPLOAD_INCOMPLETE"
    request.build.source.upload = "never-opened"
    with pytest.raises(NotFound):
        server.builder.CreateBuild(request)
    with pytest.raises(NoronhaError):
        server.someone.CreateBuild(server.request(project))
    with pytest.raises(NotFound):
        server.get(f"{project}/builds/latest")


def test_a_build_needs_a_project_and_a_source(server: Server) -> None:
    project = server.project()

    def refused(kind: type[NoronhaError], source: Source, parent: str = project) -> str:
        with pytest.raises(kind) as caught:
            server.builder.CreateBuild(
                builder_pb2.CreateBuildRequest(parent=parent, build_id="latest", build=Build(source=source))
            )
        return caught.value.reason

    assert refused(NotFound, Source(origin=Source.LOCAL), "projects/never") == "NOT_FOUND"
    assert refused(InvalidArgument, Source()) == "BAD_ORIGIN"
    assert refused(FailedPrecondition, Source(origin=Source.LOCAL)) == "NO_SOURCE"
    assert refused(FailedPrecondition, Source(origin=Source.GIT)) == "NO_SOURCE"
    assert refused(Unimplemented, Source(origin=Source.PRE_BUILT)) == "SOURCE_NOT_SUPPORTED"
    assert refused(InvalidArgument, Source(origin=Source.GIT, git_repository="ext::sh -c id")) == "BAD_REPOSITORY"
    assert (
        refused(InvalidArgument, Source(origin=Source.GIT, git_repository="/r", git_reference="--x")) == "BAD_REFERENCE"
    )
    upload, _ = server.upload(PROJECT)
    assert refused(FailedPrecondition, Source(origin=Source.LOCAL, upload=upload)) == "NO_SOURCE"


def test_a_repository_is_built_at_the_commit_that_is_recorded(server: Server, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = {
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@b",
        }
        return subprocess.run(
            ["git", *arguments],
            cwd=tmp_path,
            env={**os.environ, **identity},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "--quiet", "--initial-branch", "main")
    (tmp_path / "requirements.txt").write_text("colorama\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    git("branch", "aaa")
    (tmp_path / "later.py").write_text("")
    git("add", ".")
    git("commit", "--quiet", "-m", "second")
    project = server.project(git_repository=f"file://{tmp_path}")
    request = builder_pb2.CreateBuildRequest(
        parent=project, build_id="latest", build=Build(source=Source(origin=Source.GIT))
    )
    build = server.ended(server.builder.CreateBuild(request))
    assert build.status.state == TaskStatus.SUCCEEDED, build.status
    assert build.source.git_commit == git("rev-parse", "main")
    assert (places.source_folder(server.state, build.artifact.source_digest) / "later.py").exists()
    request.build.source.git_reference = "aaa"
    build = server.ended(server.builder.CreateBuild(request))
    assert build.source.git_commit == git("rev-parse", "aaa")
    request.build.source.git_reference = "never"
    build = server.ended(server.builder.CreateBuild(request))
    assert (build.status.state, build.status.reason) == (TaskStatus.FAILED, "REFERENCE_NOT_FOUND")
    assert list((server.state / "builder" / "exports").iterdir()) == []


def test_one_build_of_a_tag_at_a_time_and_cancelling_ends_every_process(server: Server) -> None:
    project = server.project()
    running = server.builder.CreateBuild(server.request(project, files=SLOW))
    full = f"{running.name}@{running.revision}"
    until(lambda: len(at_work(server)) >= 3, "the installation")
    refused = server.request(project)
    for _ in range(2):
        with pytest.raises(Aborted) as caught:
            server.builder.CreateBuild(refused)
        assert caught.value.reason == "BUILD_RUNNING"
    assert server.build(project, "other").status.state == TaskStatus.SUCCEEDED
    with pytest.raises(FailedPrecondition) as refusal:
        server.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=full))
    assert refusal.value.reason == "STILL_RUNNING"
    server.builder.CancelBuild(builder_pb2.CancelBuildRequest(name=running.name))
    build = server.ended(running)
    assert (build.status.state, build.status.reason) == (TaskStatus.CANCELLED, "CANCELLED")
    assert build.status.cancel_requested
    assert at_work(server) == []
    assert list((server.state / "builder" / "work").iterdir()) == []
    again = server.builder.CancelBuild(builder_pb2.CancelBuildRequest(name=full))
    assert again.status.state == TaskStatus.CANCELLED
    with pytest.raises(NotFound):
        server.builder.CancelBuild(builder_pb2.CancelBuildRequest(name=f"{project}/builds/never"))
    with pytest.raises(Aborted):
        server.builder.CreateBuild(refused)
    assert server.build(project).status.state == TaskStatus.SUCCEEDED


def test_deleting_removes_what_no_other_build_needs(server: Server) -> None:
    project = server.project()
    one = server.build(project, "one", {**PROJECT, "only.py": "1"})
    two = server.build(project, "two")
    newer = server.build(project, "two", {**PROJECT, "newer.py": ""})
    with pytest.raises(Aborted):
        server.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=one.name, etag="stale"))
    server.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=one.name))
    assert not places.source_folder(server.state, one.artifact.source_digest).exists()
    assert places.environment_python(server.state, two.artifact.environment_digest).exists()
    with pytest.raises(NotFound):
        server.get(one.name)
    with pytest.raises(NotFound):
        server.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=one.name))
    server.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=f"{two.name}@1"))
    assert server.get(two.name).revision == newer.revision == 2
    with pytest.raises(NotFound):
        server.log(f"{two.name}@1")


def test_a_build_that_a_running_training_uses_stays(server: Server) -> None:
    project = server.project()
    build = server.build(project)
    training = Training(name=f"{project}/trainings/t", build=build.name, status=TaskStatus(state=TaskStatus.RUNNING))
    record = server.records.CreateRecord(records_pb2.CreateRecordRequest(resource=Resource(training=training)))
    with pytest.raises(FailedPrecondition) as caught:
        server.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=build.name))
    assert caught.value.reason == "IN_USE"
    assert "trainings/t" in caught.value.message
    assert places.environment_python(server.state, build.artifact.environment_digest).exists()
    training = record.resource.training
    training.status.state = TaskStatus.SUCCEEDED
    server.records.UpdateRecord(records_pb2.UpdateRecordRequest(resource=Resource(training=training)))
    server.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=build.name))


@pytest.mark.parametrize("outcome", ["goes on", "is cancelled"])
def test_a_build_whose_builder_was_killed(mortal: Server, outcome: str) -> None:
    project = mortal.project()
    running = mortal.builder.CreateBuild(mortal.request(project, files=SLOW))
    until(lambda: len(at_work(mortal)) >= 3, "the installation")
    mortal.kill()
    if outcome == "goes on":
        mortal.gate.touch()
    mortal.start()
    until(lambda: not at_work(mortal) or mortal.gate.exists(), "the end of what the first attempt had started")
    if outcome == "is cancelled":
        mortal.builder.CancelBuild(builder_pb2.CancelBuildRequest(name=running.name))
    build = mortal.ended(running)
    wanted = TaskStatus.SUCCEEDED if outcome == "goes on" else TaskStatus.CANCELLED
    assert build.status.state == wanted, build.status
    assert at_work(mortal) == []
    assert list((mortal.state / "builder" / "work").iterdir()) == []
    if outcome == "goes on":
        assert "attempt 2" in mortal.log(running.name)
        assert places.environment_python(mortal.state, build.artifact.environment_digest).exists()


def test_a_build_that_kills_its_builder_each_time_is_given_up(server: Server) -> None:
    project = server.project()
    name = f"{project}/builds/deadly"
    moment = duration_pb2.Duration(nanos=1_000_000)
    server.records.CreateRecord(
        records_pb2.CreateRecordRequest(
            resource=Resource(build=Build(name=name, status=TaskStatus(state=TaskStatus.RUNNING), source=Source(origin=Source.LOCAL))),
            lease_holder="first", lease_duration=moment,
        )
    )  # fmt: skip
    for holder in ("second", "third"):

        def taken(holder: str = holder) -> bool:
            with contextlib.suppress(FailedPrecondition):
                server.records.AcquireLease(
                    records_pb2.AcquireLeaseRequest(name=f"{name}@1", holder=holder, duration=moment)
                )
                return True
            return False

        until(taken, "a free lease")
    build = server.ended(server.get(f"{name}@1"))
    assert (build.status.state, build.status.reason) == (TaskStatus.FAILED, "BUILDER_DIED")


def test_a_builder_whose_lease_another_one_held_meanwhile_undoes_nothing(mortal: Server) -> None:
    """As after a builder that stood still: the other one ended the build, and its lease is over by now."""
    project = mortal.project()
    running = mortal.builder.CreateBuild(mortal.request(project, files=SLOW))
    until(lambda: len(at_work(mortal)) >= 3, "the installation")
    name = f"{running.name}@{running.revision}"
    mortal.records.ReleaseLease(records_pb2.ReleaseLeaseRequest(name=name, fence=1))
    moment = duration_pb2.Duration(nanos=1_000_000)
    other = mortal.records.AcquireLease(records_pb2.AcquireLeaseRequest(name=name, holder="other", duration=moment))
    ended = TaskStatus(state=TaskStatus.FAILED, reason="ENDED_BY_ANOTHER")
    mortal.records.UpdateRecord(
        records_pb2.UpdateRecordRequest(
            resource=Resource(build=Build(name=running.name, revision=running.revision, status=ended)),
            update_mask=field_mask_pb2.FieldMask(paths=["status"]), fence=other.fence,
        )
    )  # fmt: skip
    until(lambda: at_work(mortal) == [], "the work to be given up")
    mortal.gate.touch()
    assert mortal.get(name).status.reason == "ENDED_BY_ANOTHER"


def test_a_stopped_server_leaves_no_process_and_the_next_one_goes_on(mortal: Server) -> None:
    project = mortal.project()
    running = mortal.builder.CreateBuild(mortal.request(project, files=SLOW))
    until(lambda: len(at_work(mortal)) >= 3, "the installation")
    mortal.stop()
    assert mortal.process is not None
    assert mortal.process.returncode == 0
    assert at_work(mortal) == []
    mortal.gate.touch()
    mortal.start()
    assert mortal.ended(running).status.state == TaskStatus.SUCCEEDED
