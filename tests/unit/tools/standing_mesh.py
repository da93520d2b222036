"""A mesh of one file, in memory, that speaks the contract and can be told to be away: what a task talks to in its tests."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from concurrent import futures
from pathlib import Path

import grpc

from noronha.rpc.chunks import checksum, digest_of
from noronha.rpc.errors import DETAILS_KEY, FailedPrecondition, NoronhaError, NotFound, OutOfRange, to_status
from noronha.v1 import (
    build_pb2,
    file_pb2,
    mesh_pb2,
    mesh_pb2_grpc,
    metadata_pb2_grpc,
    model_pb2,
    model_version_pb2,
    store_pb2,
    store_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
)


def _typed(method):
    def call(self, request, context):
        self.mesh.calls.append((method.__name__, dict(context.invocation_metadata()).get("authorization")))
        try:
            return method(self, request, context)
        except NoronhaError as error:
            code = next(each for each in grpc.StatusCode if each.value[0] == error.code)
            context.set_trailing_metadata(((DETAILS_KEY, to_status(error).SerializeToString()),))
            context.abort(code, error.message)

    return call


class _Tasks(tasks_pb2_grpc.TasksServicer):
    def __init__(self, mesh):
        self.mesh = mesh

    @_typed
    def GetAssignment(self, request, context):
        return self.mesh.assignment

    @_typed
    def Heartbeat(self, request, context):
        self.mesh.heartbeats.append(request)
        return tasks_pb2.HeartbeatResponse(committed_position=len(self.mesh.log))

    @_typed
    def ReportProgress(self, request, context):
        self.mesh.progress.append(request.progress)
        if request.warning:
            self.mesh.warnings.append(request.warning)
        return tasks_pb2.ReportProgressResponse()

    @_typed
    def AppendOutput(self, request, context):
        mesh = self.mesh
        if mesh.ended:
            raise FailedPrecondition("the task has ended", reason="TASK_ENDED")
        if request.position > len(mesh.log):
            raise OutOfRange("a gap", reason="LOG_GAP", committed_position=len(mesh.log))
        mesh.log += request.data[len(mesh.log) - request.position :]
        return tasks_pb2.AppendOutputResponse(committed_position=len(mesh.log))

    @_typed
    def ReportPublished(self, request, context):
        self.mesh.published.append(request.model_version)
        return tasks_pb2.ReportPublishedResponse()

    @_typed
    def ReportOutcome(self, request, context):
        self.mesh.outcome = request
        self.mesh.outcome_told.set()
        return tasks_pb2.ReportOutcomeResponse()

    def WatchCommands(self, request, context):
        while context.is_active():
            try:
                yield self.mesh.commands.get(timeout=0.1)
            except queue.Empty:
                continue


class _Metadata(metadata_pb2_grpc.MetadataServicer):
    def __init__(self, mesh):
        self.mesh = mesh

    @_typed
    def GetModel(self, request, context):
        return model_pb2.Model(name=request.name, model_files=[model_pb2.FileSpec(name="clf.pkl")])

    @_typed
    def GetModelVersion(self, request, context):
        return self.mesh.version(request.name)

    @_typed
    def CreateModelVersion(self, request, context):
        return self.mesh.publish(f"{request.parent}/versions/{request.model_version_id}", request)

    @_typed
    def PublishModelVersion(self, request, context):
        return self.mesh.publish(request.model_version.name, request)


class _Store(store_pb2_grpc.StoreServicer):
    def __init__(self, mesh):
        self.mesh = mesh

    @_typed
    def OpenUpload(self, request, context):
        missing = [each for each in request.entries if each.digest not in self.mesh.blobs]
        return store_pb2.Upload(
            upload="u1",
            missing=[store_pb2.PartialBlob(digest=each.digest) for each in missing],
            max_chunk_bytes=1 << 20,
        )

    def WriteBlobs(self, requests, context):
        parts, digest = {}, ""
        for request in requests:
            digest = request.digest or digest
            parts[digest] = parts.get(digest, b"") + request.data
        for digest, content in parts.items():
            self.mesh.blobs[digest] = content
            yield store_pb2.WriteBlobsResponse(digest=digest, committed_offset=len(content), complete=True)

    def ReadBlob(self, request, context):
        content = self.mesh.blobs[request.digest]
        yield store_pb2.ReadBlobResponse(data=content, crc32=checksum(content), size_bytes=len(content))


class _Mesh(mesh_pb2_grpc.MeshServicer):
    def GetInfo(self, request, context):
        info = mesh_pb2.MeshInfo()
        for name in ("metadata", "store", "runner"):
            info.services.add(name=name, serving=True)
        return info


class StandingMesh:
    """What a task told, and what it is told."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.assignment = tasks_pb2.Assignment()
        self.calls, self.heartbeats, self.progress, self.warnings, self.published = [], [], [], [], []
        self.log = b""
        self.ended = False
        self.outcome = None
        self.outcome_told = threading.Event()
        self.commands = queue.Queue()
        self.blobs = {}
        self.versions = {}
        self.token = "nha1.secret-token-of-this-test"
        self._server = None
        self.address = f"unix:{folder}/m.sock"

    def come(self):
        """Starts to answer."""
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        tasks_pb2_grpc.add_TasksServicer_to_server(_Tasks(self), self._server)
        metadata_pb2_grpc.add_MetadataServicer_to_server(_Metadata(self), self._server)
        store_pb2_grpc.add_StoreServicer_to_server(_Store(self), self._server)
        mesh_pb2_grpc.add_MeshServicer_to_server(_Mesh(), self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def go(self):
        """Stops answering."""
        if self._server is not None:
            self._server.stop(0).wait(10)
            self._server = None

    def put(self, path: str, content: bytes) -> file_pb2.File:
        """Returns a file whose bytes are here."""
        digest = digest_of(hashlib.sha256(content).hexdigest())
        self.blobs[digest] = content
        return file_pb2.File(path=path, digest=digest, size_bytes=len(content))

    def version(self, name: str) -> model_version_pb2.ModelVersion:
        """Returns a revision of a version."""
        bare, _, revision = name.partition("@")
        found = self.versions.get(bare)
        if not found:
            raise NotFound(f"{name} does not exist", name=name)
        return found[int(revision) - 1 if revision else -1]

    def publish(self, name, request) -> model_version_pb2.ModelVersion:
        """Makes the next revision of a version."""
        record = model_version_pb2.ModelVersion()
        record.CopyFrom(request.model_version)
        record.name, record.stored = name, True
        del record.files[:]
        record.files.extend(request.files)
        record.revision = len(self.versions.setdefault(name, [])) + 1
        record.create_time.GetCurrentTime()
        self.versions[name].append(record)
        return record

    def assign(self, kind, notebook, **fields):
        """Sets what the task is to do."""
        self.assignment = tasks_pb2.Assignment(kind=kind, notebook=notebook, models=["models/iris-clf"], **fields)
        self.assignment.project.name = "projects/botanics"
        self.assignment.heartbeat_interval.FromMilliseconds(200)
        if kind == tasks_pb2.Assignment.TRAINING:
            self.assignment.name = self.assignment.training.name = "projects/botanics/trainings/experiment-v1"
            self.assignment.training.notebook = notebook
            self.assignment.training.params_json = self.assignment.params_json
            self.assignment.training.build_snapshot.CopyFrom(build_pb2.Build(name="projects/botanics/builds/latest"))
        else:
            self.assignment.name = "projects/botanics/deployments/homolog/replicas/r1"
            self.assignment.listen_host = "127.0.0.1"

    def prepare(self, folder: Path, interpreter: str) -> Path:
        """Writes a task's folders and its assignment file, whose path is returned."""
        directories = {"task": folder, **{name: folder / name for name in ("app", "data", "model", "tmp", "logs")}}
        for path in directories.values():
            path.mkdir(parents=True, exist_ok=True)
        token = folder / "token"
        token.write_text(self.token)
        os.chmod(token, 0o600)
        file = folder / "assignment.json"
        file.write_text(
            json.dumps({"address": self.address, "token_file": str(token), "interpreter": interpreter,
                        "directories": {name: str(path) for name, path in directories.items()}})
        )  # fmt: skip
        return file
