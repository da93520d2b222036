"""``nha ds``: datasets, files that a model is trained with."""

from __future__ import annotations

from pathlib import Path

import click

from noronha.cli import options, removals
from noronha.cli.options import Subject
from noronha.cli.target import Target, pass_target


@click.group(cls=Subject)
def subject() -> None:
    """Datasets: files that a model is trained with."""


model = click.option(
    "-m", "--model", type=options.NAME, required=True, help="Name of the model to which this dataset belongs."
)
name = click.option(
    "-n", "--name", type=options.REVISION, required=True, help="Name of the dataset; with @n for one revision."
)


@subject.command()
@model
@name
@pass_target
def info(target: Target, model: str, name: str) -> None:
    """Information about a dataset."""
    from noronha.client.references import to_name
    from noronha.v1 import metadata_pb2

    request = metadata_pb2.GetDatasetRequest(name=to_name("dataset", f"{model}:{name}"))
    found = target.mesh.metadata.GetDataset(request)
    target.show(found)


@subject.command("list")
@click.option("-m", "--model", type=options.NAME, help="Only datasets that belong to this model will be listed.")
@options.listing()
@pass_target
def list_(
    target: Target, model: str | None, query: str | None, expand: bool, limit: int | None, order_by: str | None
) -> None:
    """List datasets."""
    from noronha.cli.lists import run
    from noronha.client.references import to_name
    from noronha.v1 import metadata_pb2

    parent = "models/-" if model is None else to_name("model", model)
    request = metadata_pb2.ListDatasetsRequest(parent=parent, order_by=order_by or "")
    run(target, "dataset", request, query=query, expand=expand, limit=limit)


@subject.command(help=removals.help_with_files("a dataset"))
@model
@name
@pass_target
def rm(target: Target, model: str, name: str) -> None:
    from noronha.client.references import to_name
    from noronha.v1 import metadata_pb2

    full = to_name("dataset", f"{model}:{name}")
    metadata = target.mesh.metadata
    found = metadata.GetDataset(metadata_pb2.GetDatasetRequest(name=full))
    metadata.DeleteDataset(metadata_pb2.DeleteDatasetRequest(name=full))
    removed = {
        "name": name, "model": model, "record": "removed", "files": "purged" if found.stored else "not_stored",
    }  # fmt: skip
    target.present(removed, f"{model}:{name}")


@subject.command()
@click.option("-n", "--name", type=options.NAME, help="Name of the dataset (defaults to a random name).")
@click.option(
    "-m",
    "--model",
    type=options.NAME,
    required=True,
    help="The model to which this dataset belongs (further info: nha model --help).",
)
@click.option("-d", "--details", type=options.JSON, help="JSON with any details related to the dataset.")
@click.option(
    "-p", "--path", type=click.Path(path_type=Path),
    help="Path to the directory that contains the dataset files (default: current working directory).",
)  # fmt: skip
@click.option("-c", "--compress", is_flag=True, help="Compress all dataset files to a single tar.gz archive.")
@click.option("--skip-upload", is_flag=True, help="Don't upload any files, just record metadata.")
@options.lightweight
@pass_target
def new(
    target: Target,
    name: str | None,
    model: str,
    details: str | None,
    path: Path | None,
    compress: bool,
    skip_upload: bool,
    lightweight: bool,
) -> None:
    """Add a new dataset."""
    from noronha.cli import publishing
    from noronha.client import publish
    from noronha.client.references import to_key

    files = publishing.files(path, compress=compress, skip_upload=skip_upload, lightweight=lightweight)
    with publishing.progress(target) as progress:
        made = publish.dataset(
            target.mesh, model, name, files, details_json=details,
            replace=publishing.overwrite(target, "Dataset"), notice=target.voice.info, progress=progress,
        )  # fmt: skip
    if name is None:
        target.voice.warn(f"Dataset is anonymous. Using random name: {to_key(made.name).partition(':')[2]}")
    target.show(made)


@subject.command()
@click.option("-n", "--name", type=options.NAME, required=True, help="Name of the dataset you want to update.")
@click.option(
    "-m",
    "--model",
    type=options.NAME,
    required=True,
    help="The model to which this dataset belongs (further info: nha model --help).",
)
@click.option("-d", "--details", type=options.JSON, help="JSON with details related to the dataset.")
@click.option(
    "-p", "--path", type=click.Path(path_type=Path),
    help="Path to the directory that contains the dataset files (default: the files stay as they are).",
)  # fmt: skip
@click.option("-c", "--compress", is_flag=True, help="Compress the files of --path to a single tar.gz archive.")
@pass_target
def update(target: Target, name: str, model: str, details: str | None, path: Path | None, compress: bool) -> None:
    """Update a dataset's details or files, as a new revision; what is not given stays."""
    from noronha.cli import publishing
    from noronha.client import publish

    if details is None and path is None:
        raise click.UsageError("nothing to update; give --details or --path")
    files = publishing.files(path, compress=compress) if path is not None else None
    with publishing.progress(target) as progress:
        made = publish.update_dataset(
            target.mesh, model, name, files, details_json=details, notice=target.voice.info, progress=progress
        )
    target.show(made)
