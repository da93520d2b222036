"""``nha movers``: model versions, what trainings produced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from noronha.cli import options, removals
from noronha.cli.options import Subject
from noronha.cli.target import Target, pass_target


@click.group(cls=Subject)
def subject() -> None:
    """Model versions: what trainings produced."""


model = click.option(
    "-m", "--model", type=options.NAME, required=True, help="Name of the model to which this version belongs."
)
name = click.option(
    "-n", "--name", type=options.REVISION, required=True, help="Name of the version; with @n for one revision."
)


@subject.command()
@model
@name
@pass_target
def info(target: Target, model: str, name: str) -> None:
    """Information about a model version."""
    from noronha.client.references import to_name
    from noronha.v1 import metadata_pb2

    request = metadata_pb2.GetModelVersionRequest(name=to_name("model_version", f"{model}:{name}"))
    found = target.mesh.metadata.GetModelVersion(request)
    target.show(found)


@subject.command("list")
@options.listing()
@click.option("-m", "--model", type=options.NAME, help="Only versions of this model will be listed.")
@click.option("--dataset", "--ds", "dataset", help="Only versions trained with this dataset will be listed.")
@click.option("--train", type=options.NAME, help="Only model versions produced by this training will be listed.")
@click.option(
    "--proj",
    type=options.NAME,
    help="To be used along with 'train': name of the project to which this training belongs.",
)
@pass_target
def list_(
    target: Target,
    query: str | None,
    expand: bool,
    limit: int | None,
    order_by: str | None,
    model: str | None,
    dataset: str | None,
    train: str | None,
    proj: str | None,
) -> None:
    """List model versions."""
    from noronha.cli.filters import rewrite
    from noronha.cli.lists import run
    from noronha.client.references import to_key, to_name
    from noronha.v1 import metadata_pb2

    parent = "models/-" if model is None else to_name("model", model)
    conditions: list[dict[str, Any]] = []
    if dataset is not None:
        if model is not None and ":" not in dataset:
            dataset = f"{model}:{dataset}"
        if ":" in dataset:
            to_name("dataset", dataset)
        conditions.append(rewrite("model_version", {"ds" if ":" in dataset else "ds.name": dataset}))
    if (training := _training(target, train, proj)) is not None:
        conditions.append(rewrite("model_version", {"train": to_key(training)}))
    also = {"$and": conditions} if conditions else None
    request = metadata_pb2.ListModelVersionsRequest(parent=parent, order_by=order_by or "")
    run(target, "model_version", request, query=query, expand=expand, limit=limit, also=also)


@subject.command(help=removals.help_with_files("a model version"))
@model
@name
@pass_target
def rm(target: Target, model: str, name: str) -> None:
    from noronha.client.references import to_name
    from noronha.v1 import metadata_pb2

    full = to_name("model_version", f"{model}:{name}")
    metadata = target.mesh.metadata
    found = metadata.GetModelVersion(metadata_pb2.GetModelVersionRequest(name=full))
    metadata.DeleteModelVersion(metadata_pb2.DeleteModelVersionRequest(name=full))
    removed = {
        "name": name, "model": model, "record": "removed", "files": "purged" if found.stored else "not_stored",
    }  # fmt: skip
    target.present(removed, f"{model}:{name}")


def _training(target: Target, train: str | None, proj: str | None) -> str | None:
    if train is None:
        if proj is not None:
            raise click.UsageError("--proj is used along with --train")
        return None
    return target.within("training", proj, train)


def _dataset(model: str, dataset: str | None) -> str | None:
    from noronha.client.references import to_name

    if dataset is None:
        return None
    return to_name("dataset", dataset if ":" in dataset else f"{model}:{dataset}")


def _pretrained(pretrained: str | None) -> str | None:
    from noronha.client.references import to_name

    return None if pretrained is None else to_name("model_version", pretrained)


dataset_option = click.option(
    "--dataset", "--ds", "dataset", help="Name of the dataset that trained this model version."
)
train_option = click.option("--train", type=options.NAME, help="Name of the training that produced this model version.")
proj_option = click.option(
    "--proj",
    type=options.NAME,
    help="To be used along with 'train': name of the project to which this training belongs.",
)
pretrained_option = click.option(
    "--pretrained",
    help="Reference to another model version that was used as a pre-trained asset for training this one: "
    "<model_name>:<model_version>, such as word2vec:en-us-v1.",
)


@subject.command()
@click.option("-n", "--name", type=options.NAME, help="Name of the version (defaults to a random name).")
@click.option(
    "-m",
    "--model",
    type=options.NAME,
    required=True,
    help="The model to which this version belongs (further info: nha model --help).",
)
@click.option("-d", "--details", type=options.JSON, help="JSON with details related to the model version.")
@click.option(
    "-p", "--path", type=click.Path(path_type=Path),
    help="Path to the directory that contains the model files (default: current working directory).",
)  # fmt: skip
@dataset_option
@train_option
@proj_option
@pretrained_option
@click.option("-c", "--compress", is_flag=True, help="Compress all model files to a single tar.gz archive.")
@click.option("--skip-upload", is_flag=True, help="Don't upload any files, just record metadata.")
@options.lightweight
@pass_target
def new(
    target: Target,
    name: str | None,
    model: str,
    details: str | None,
    path: Path | None,
    dataset: str | None,
    train: str | None,
    proj: str | None,
    pretrained: str | None,
    compress: bool,
    skip_upload: bool,
    lightweight: bool,
) -> None:
    """Record a new model version in the framework."""
    from noronha.cli import publishing
    from noronha.client import publish
    from noronha.client.references import to_key

    files = publishing.files(path, compress=compress, skip_upload=skip_upload, lightweight=lightweight)
    with publishing.progress(target) as progress:
        made = publish.model_version(
            target.mesh, model, name, files, details_json=details, training=_training(target, train, proj),
            dataset=_dataset(model, dataset), pretrained=_pretrained(pretrained),
            replace=publishing.overwrite(target, "ModelVersion"), notice=target.voice.info, progress=progress,
        )  # fmt: skip
    if name is None:
        target.voice.warn(f"ModelVersion is anonymous. Using random name: {to_key(made.name).partition(':')[2]}")
    target.show(made)


@subject.command()
@click.option("-n", "--name", type=options.NAME, required=True, help="Name of the model version you want to update.")
@click.option(
    "-m",
    "--model",
    type=options.NAME,
    required=True,
    help="The model to which this version belongs (further info: nha model --help).",
)
@click.option("-d", "--details", type=options.JSON, help="JSON with details related to the version.")
@click.option(
    "-p", "--path", type=click.Path(path_type=Path),
    help="Path to the directory that contains the model files (default: the files stay as they are).",
)  # fmt: skip
@dataset_option
@train_option
@proj_option
@pretrained_option
@click.option("-c", "--compress", is_flag=True, help="Compress the files of --path to a single tar.gz archive.")
@pass_target
def update(
    target: Target,
    name: str,
    model: str,
    details: str | None,
    path: Path | None,
    dataset: str | None,
    train: str | None,
    proj: str | None,
    pretrained: str | None,
    compress: bool,
) -> None:
    """Update a model version's details or files, as a new revision; what is not given stays."""
    from noronha.cli import publishing
    from noronha.client import publish

    if all(each is None for each in (details, path, dataset, train, pretrained)):
        raise click.UsageError("nothing to update; give --details, --path, --dataset, --train or --pretrained")
    files = publishing.files(path, compress=compress) if path is not None else None
    with publishing.progress(target) as progress:
        made = publish.update_model_version(
            target.mesh, model, name, files, details_json=details, training=_training(target, train, proj),
            dataset=_dataset(model, dataset), pretrained=_pretrained(pretrained), notice=target.voice.info,
            progress=progress,
        )  # fmt: skip
    target.show(made)
