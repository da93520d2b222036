"""Metadata on the wire: every call is handed to the module of its noun, and what that returns is the answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.empty_pb2 import Empty

from noronha.chassis import principals, registry
from noronha.chassis.mount import Context
from noronha.metadata import (
    aliases,
    assets,
    chests,
    lineage,
    models,
    owned,
    projects,
    reading,
    search,
)
from noronha.metadata.assets import DATASET, VERSION
from noronha.metadata.backends import SCHEMES
from noronha.metadata.catalog import Catalog
from noronha.metadata.watch import Watch
from noronha.v1 import metadata_pb2 as pb
from noronha.v1 import metadata_pb2_grpc, records_pb2, records_pb2_grpc


@contextlib.asynccontextmanager
async def mount(server: Any, context: Context) -> AsyncIterator[list[str]]:
    """Mounts Metadata and Records on a server and yields their names; the backend is closed on leaving."""
    url = context.settings.backend("metadata")
    backend = registry.load(SCHEMES, url, "metadata.backend")
    records = backend.from_url(url, context.state_dir("metadata"))
    try:
        catalog = await Catalog.open(records, context.peers)
        metadata_pb2_grpc.add_MetadataServicer_to_server(MetadataServicer(catalog, context), server)
        records_pb2_grpc.add_RecordsServicer_to_server(RecordsServicer(catalog), server)
        yield ["noronha.v1.Metadata", "noronha.v1.Records"]
    finally:
        await records.close()


class MetadataServicer(metadata_pb2_grpc.MetadataServicer):
    """The rpcs of ``noronha.v1.Metadata``."""

    def __init__(self, catalog: Catalog, context: Context) -> None:
        self._catalog = catalog
        self._context = context

    async def _get(self, kind: str, request: Any) -> Any:
        return await reading.get(self._catalog, principals.current(), kind, request.name, request.read_mask)

    async def _list(self, kind: str, request: Any) -> reading.Listing:
        return await reading.list_page(self._catalog, principals.current(), kind, request)

    async def GetProject(self, request: Any, context: Any) -> Any:
        return await self._get("project", request)

    async def ListProjects(self, request: Any, context: Any) -> Any:
        page = await self._list("project", request)
        return pb.ListProjectsResponse(projects=page.messages, next_page_token=page.next_page_token)

    async def CreateProject(self, request: Any, context: Any) -> Any:
        return await projects.create(self._catalog, principals.current(), request)

    async def UpdateProject(self, request: Any, context: Any) -> Any:
        return await projects.update(self._catalog, principals.current(), request)

    async def DeleteProject(self, request: Any, context: Any) -> Any:
        await projects.delete(self._catalog, principals.current(), request)
        return Empty()

    async def GetModel(self, request: Any, context: Any) -> Any:
        return await self._get("model", request)

    async def ListModels(self, request: Any, context: Any) -> Any:
        page = await self._list("model", request)
        return pb.ListModelsResponse(models=page.messages, next_page_token=page.next_page_token)

    async def CreateModel(self, request: Any, context: Any) -> Any:
        return await models.create(self._catalog, principals.current(), request)

    async def UpdateModel(self, request: Any, context: Any) -> Any:
        return await models.update(self._catalog, principals.current(), request)

    async def DeleteModel(self, request: Any, context: Any) -> Any:
        await models.delete(self._catalog, principals.current(), request)
        return Empty()

    async def GetModelVersion(self, request: Any, context: Any) -> Any:
        return await self._get("model_version", request)

    async def ListModelVersions(self, request: Any, context: Any) -> Any:
        page = await self._list("model_version", request)
        return pb.ListModelVersionsResponse(model_versions=page.messages, next_page_token=page.next_page_token)

    async def CreateModelVersion(self, request: Any, context: Any) -> Any:
        return await assets.create(self._catalog, principals.current(), VERSION, request)

    async def PublishModelVersion(self, request: Any, context: Any) -> Any:
        return await assets.publish(self._catalog, principals.current(), VERSION, request)

    async def DeleteModelVersion(self, request: Any, context: Any) -> Any:
        await assets.delete(self._catalog, principals.current(), VERSION, request)
        return Empty()

    async def GetDataset(self, request: Any, context: Any) -> Any:
        return await self._get("dataset", request)

    async def ListDatasets(self, request: Any, context: Any) -> Any:
        page = await self._list("dataset", request)
        return pb.ListDatasetsResponse(datasets=page.messages, next_page_token=page.next_page_token)

    async def CreateDataset(self, request: Any, context: Any) -> Any:
        return await assets.create(self._catalog, principals.current(), DATASET, request)

    async def PublishDataset(self, request: Any, context: Any) -> Any:
        return await assets.publish(self._catalog, principals.current(), DATASET, request)

    async def DeleteDataset(self, request: Any, context: Any) -> Any:
        await assets.delete(self._catalog, principals.current(), DATASET, request)
        return Empty()

    async def GetAlias(self, request: Any, context: Any) -> Any:
        return await self._get("alias", request)

    async def ListAliases(self, request: Any, context: Any) -> Any:
        page = await self._list("alias", request)
        return pb.ListAliasesResponse(aliases=page.messages, next_page_token=page.next_page_token)

    async def CreateAlias(self, request: Any, context: Any) -> Any:
        return await aliases.create(self._catalog, principals.current(), request)

    async def MoveAlias(self, request: Any, context: Any) -> Any:
        return await aliases.move(self._catalog, principals.current(), request)

    async def DeleteAlias(self, request: Any, context: Any) -> Any:
        await aliases.delete(self._catalog, principals.current(), request)
        return Empty()

    async def GetBuild(self, request: Any, context: Any) -> Any:
        return await self._get("build", request)

    async def ListBuilds(self, request: Any, context: Any) -> Any:
        page = await self._list("build", request)
        return pb.ListBuildsResponse(builds=page.messages, next_page_token=page.next_page_token)

    async def GetTraining(self, request: Any, context: Any) -> Any:
        return await self._get("training", request)

    async def ListTrainings(self, request: Any, context: Any) -> Any:
        page = await self._list("training", request)
        return pb.ListTrainingsResponse(trainings=page.messages, next_page_token=page.next_page_token)

    async def GetDeployment(self, request: Any, context: Any) -> Any:
        return await self._get("deployment", request)

    async def ListDeployments(self, request: Any, context: Any) -> Any:
        page = await self._list("deployment", request)
        return pb.ListDeploymentsResponse(deployments=page.messages, next_page_token=page.next_page_token)

    async def GetDeploymentRevision(self, request: Any, context: Any) -> Any:
        return await self._get("deployment_revision", request)

    async def ListDeploymentRevisions(self, request: Any, context: Any) -> Any:
        page = await self._list("deployment_revision", request)
        return pb.ListDeploymentRevisionsResponse(
            deployment_revisions=page.messages, next_page_token=page.next_page_token
        )

    async def ListReplicas(self, request: Any, context: Any) -> Any:
        page = await self._list("replica", request)
        return pb.ListReplicasResponse(replicas=page.messages, next_page_token=page.next_page_token)

    async def GetTraffic(self, request: Any, context: Any) -> Any:
        return await self._get("traffic", request)

    async def GetNotebook(self, request: Any, context: Any) -> Any:
        return await self._get("notebook", request)

    async def ListNotebooks(self, request: Any, context: Any) -> Any:
        page = await self._list("notebook", request)
        return pb.ListNotebooksResponse(notebooks=page.messages, next_page_token=page.next_page_token)

    async def GetChest(self, request: Any, context: Any) -> Any:
        return await self._get("chest", request)

    async def ListChests(self, request: Any, context: Any) -> Any:
        page = await self._list("chest", request)
        return pb.ListChestsResponse(chests=page.messages, next_page_token=page.next_page_token)

    async def CreateChest(self, request: Any, context: Any) -> Any:
        return await chests.create(self._catalog, principals.current(), request)

    async def UpdateChest(self, request: Any, context: Any) -> Any:
        return await chests.update(self._catalog, principals.current(), request)

    async def DeleteChest(self, request: Any, context: Any) -> Any:
        await chests.delete(self._catalog, principals.current(), request)
        return Empty()

    async def GetIsland(self, request: Any, context: Any) -> Any:
        return await self._get("island", request)

    async def ListIslands(self, request: Any, context: Any) -> Any:
        page = await self._list("island", request)
        return pb.ListIslandsResponse(islands=page.messages, next_page_token=page.next_page_token)

    async def SearchResources(self, request: Any, context: Any) -> Any:
        return await search.find(self._catalog, principals.current(), request)

    async def GetLineage(self, request: Any, context: Any) -> Any:
        return await lineage.trace(self._catalog, principals.current(), request)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        watch = Watch(self._catalog, principals.current(), request, self._context.stopping)
        async with contextlib.aclosing(watch.steps()) as steps:
            async for step in steps:
                yield step


class RecordsServicer(records_pb2_grpc.RecordsServicer):
    """The rpcs of ``noronha.v1.Records``."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def _commit(self, **write: Any) -> Any:
        one = records_pb2.CommitRecordsRequest.Write(**write)
        made = await owned.commit(self._catalog, principals.current(), [one])
        return made.records[0]

    async def CreateRecord(self, request: Any, context: Any) -> Any:
        return await self._commit(create=request)

    async def UpdateRecord(self, request: Any, context: Any) -> Any:
        return await self._commit(update=request)

    async def DeleteRecord(self, request: Any, context: Any) -> Any:
        await self._commit(delete=request)
        return Empty()

    async def CommitRecords(self, request: Any, context: Any) -> Any:
        return await owned.commit(self._catalog, principals.current(), request.writes)

    async def AcquireLease(self, request: Any, context: Any) -> Any:
        return await owned.acquire(self._catalog, principals.current(), request)

    async def ReleaseLease(self, request: Any, context: Any) -> Any:
        await owned.release(self._catalog, principals.current(), request)
        return Empty()

    async def ListReferencedDigests(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for digests in self._catalog.records.digests(principals.current().tenant):
            yield records_pb2.ListReferencedDigestsResponse(digests=digests)
