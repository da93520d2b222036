"""``nha model``: model definitions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from noronha.cli import options
from noronha.cli.options import Subject
from noronha.cli.target import Target, pass_target

if TYPE_CHECKING:
    from noronha.v1 import model_pb2

FILE_KEYS = {"name": "name", "desc": "description", "required": "required", "max_mb": "max_mb"}
"""Keys of a file's description on the command line, to the contract's."""

model_file = click.option(
    "--model-file", "model_files", type=options.JSON, multiple=True,
    help="JSON describing a file that is used for saving/loading this model. Can be given several times. Example: "
    '{"name": "categories.pkl", "desc": "Prediction labels", "required": true, "max_mb": 64}',
)  # fmt: skip

data_file = click.option(
    "--data-file", "data_files", type=options.JSON, multiple=True,
    help="JSON describing a file that is used for training this model. Can be given several times. Example: "
    '{"name": "intents.csv", "desc": "Examples for each user intent", "required": true, "max_mb": 128}',
)  # fmt: skip


def file_spec(text: str, option: str) -> model_pb2.FileSpec:
    """Returns a file's description. Raises BadParameter for keys or values that it does not take."""
    from noronha.v1 import model_pb2

    given = json.loads(text)
    unknown = [key for key in given if key not in FILE_KEYS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(FILE_KEYS)}", param_hint=option)
    kinds: dict[str, tuple[type, str]] = {
        "name": (str, "a text"), "desc": (str, "a text"), "required": (bool, "true or false"),
        "max_mb": (int, "a whole number"),
    }  # fmt: skip
    for key, value in given.items():
        kind, words = kinds[key]
        if value is not None and type(value) is not kind:
            raise click.BadParameter(f"{key} must be {words}, not {json.dumps(value)}", param_hint=option)
    if not given.get("name"):
        raise click.BadParameter("a file needs a name", param_hint=option)
    try:
        return model_pb2.FileSpec(**{FILE_KEYS[key]: value for key, value in given.items() if value is not None})
    except (ValueError, TypeError) as error:
        raise click.BadParameter(str(error), param_hint=option) from None


@click.group(cls=Subject)
def subject() -> None:
    """Model definitions: what a version of a model and its datasets are made of."""


@subject.command()
@click.option("-n", "--name", type=options.NAME, required=True, help="Name of the model.")
@pass_target
def info(target: Target, name: str) -> None:
    """Information about a model."""
    from noronha.client.references import to_name
    from noronha.v1 import metadata_pb2

    found = target.mesh.metadata.GetModel(metadata_pb2.GetModelRequest(name=to_name("model", name)))
    target.show(found)


@subject.command("list")
@options.listing()
@pass_target
def list_(target: Target, query: str | None, expand: bool, limit: int | None, order_by: str | None) -> None:
    """List model records."""
    from noronha.cli.lists import run
    from noronha.v1 import metadata_pb2

    request = metadata_pb2.ListModelsRequest(order_by=order_by or "")
    run(target, "model", request, query=query, expand=expand, limit=limit)


@subject.command()
@click.option("-n", "--name", type=options.NAME, required=True, help="Name of the model.")
@click.option("-d", "--desc", default="", help="Free text description.")
@model_file
@data_file
@pass_target
def new(target: Target, name: str, desc: str, model_files: tuple[str, ...], data_files: tuple[str, ...]) -> None:
    """Record a new model in the database."""
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import metadata_pb2, model_pb2

    wanted = model_pb2.Model(
        description=desc,
        model_files=[file_spec(text, "--model-file") for text in model_files],
        data_files=[file_spec(text, "--data-file") for text in data_files],
    )
    if not model_files:
        target.voice.warn("Creating model without a strict model persistence definition")
    if not data_files:
        target.voice.warn("Creating model without a strict dataset files definition")
    made = target.mesh.metadata.CreateModel(
        metadata_pb2.CreateModelRequest(model_id=name, model=wanted, request_id=new_request_id())
    )
    target.show(made)


@subject.command()
@click.option("-n", "--name", type=options.NAME, required=True, help="Name of the model you want to update.")
@click.option("-d", "--desc", help="Free text description.")
@model_file
@data_file
@click.option("--no-model-files", is_flag=True, help="Disable the tracking of model files.")
@click.option("--no-ds-files", is_flag=True, help="Disable the tracking of dataset files.")
@pass_target
def update(
    target: Target,
    name: str,
    desc: str | None,
    model_files: tuple[str, ...],
    data_files: tuple[str, ...],
    no_model_files: bool,
    no_ds_files: bool,
) -> None:
    """Update a model record; what is not given stays."""
    from noronha.client.references import to_name
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import metadata_pb2, model_pb2

    if model_files and no_model_files:
        raise click.UsageError("--model-file and --no-model-files contradict each other")
    if data_files and no_ds_files:
        raise click.UsageError("--data-file and --no-ds-files contradict each other")
    wanted = model_pb2.Model(
        name=to_name("model", name),
        model_files=[file_spec(text, "--model-file") for text in model_files],
        data_files=[file_spec(text, "--data-file") for text in data_files],
    )
    paths = []
    if desc is not None:
        wanted.description = desc
        paths.append("description")
    if model_files or no_model_files:
        paths.append("model_files")
    if data_files or no_ds_files:
        paths.append("data_files")
    if not paths:
        raise click.UsageError("nothing to update; give --desc, --model-file, --data-file or a --no-… flag")
    if model_files or data_files or no_model_files or no_ds_files:
        target.mesh.metadata.GetModel(metadata_pb2.GetModelRequest(name=wanted.name))
        target.voice.warn("Existing versions and datasets may not fit the new file definitions")
        target.must("Do you want to proceed?")
    request = metadata_pb2.UpdateModelRequest(model=wanted, request_id=new_request_id())
    request.update_mask.paths.extend(paths)
    made = target.mesh.metadata.UpdateModel(request)
    target.show(made)


@subject.command()
@click.option("-n", "--name", type=options.NAME, required=True, help="Name of the model.")
@pass_target
def rm(target: Target, name: str) -> None:
    """Remove a model along with all of its versions and datasets."""
    from noronha.cli.removals import report
    from noronha.client.listing import every
    from noronha.client.references import last_id, to_name
    from noronha.v1 import metadata_pb2

    full = to_name("model", name)
    metadata = target.mesh.metadata
    metadata.GetModel(metadata_pb2.GetModelRequest(name=full))
    datasets = metadata_pb2.ListDatasetsRequest(parent=full)
    versions = metadata_pb2.ListModelVersionsRequest(parent=full)
    for request in (datasets, versions):
        request.read_mask.paths.append("name")
    removed = {
        "Removed Datasets": [last_id(each.name) for each in every(metadata.ListDatasets, datasets, "datasets")],
        "Removed ModelVersions": [
            last_id(each.name) for each in every(metadata.ListModelVersions, versions, "model_versions")
        ],
        "Removed Model": name,
    }
    target.voice.warn(f"All datasets and versions of model '{name}' are removed with it")
    target.must("Do you want to proceed?")
    metadata.DeleteModel(metadata_pb2.DeleteModelRequest(name=full, force=True), timeout=120)
    report(target, removed, name)
