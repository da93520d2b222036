"""Errors of the contract in the words of the command: names as people type them, fields as options, and what next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from noronha.client import words
from noronha.rpc.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from noronha.rpc.errors import NoronhaError

OPTIONS = {
    "project_id": "--name",
    "model_id": "--name",
    "dataset_id": "--name",
    "model_version_id": "--name",
    "training_id": "--name",
    "deployment_id": "--name",
    "build_id": "--tag",
    "description": "--desc",
    "models": "--model",
    "model_files": "--model-file",
    "data_files": "--data-file",
    "home_dir": "--home-dir",
    "git_repository": "--git-repo",
    "docker_repository": "--docker-repo",
    "details_json": "--details",
    "params_json": "--params",
    "notebook": "--notebook",
    "environment": "--env-var",
    "mounts": "--mount",
    "datasets": "--dataset",
    "pretrained": "--pretrained",
    "model_versions": "--movers",
    "resources": "--resource-profile",
    "target_deployment": "--target-deploy",
    "replicas": "--n-tasks",
    "port": "--port",
    "filter": "--filter",
    "order_by": "--order-by",
}
"""Fields of requests to the options that fill them."""

LISTS = {
    "project": "nha proj list",
    "model": "nha model list",
    "build": "nha bvers list --proj {}",
    "training": "nha train list --proj {}",
    "deployment": "nha depl list --proj {}",
    "dataset": "nha ds list --model {}",
    "model_version": "nha movers list --model {}",
}
"""Kinds to the command that shows what there is."""

_SEGMENT = re.compile(r"(?P<field>\w+)(?:\[(?P<place>[^\]]*)\])?")


def in_words(error: NoronhaError) -> str:
    """Returns an error's line as its reader would say it, with the next step where the error knows none."""
    text = error.message
    if words.is_quotation(error.reason):
        return text
    if isinstance(error, InvalidArgument) and error.reason != "BAD_SETTING":  # settings keep their keys
        for field, _ in error.violations:
            place = re.search(rf"(?<![\w./]){re.escape(field)}(?!\w)", text)
            if place is not None:
                text = text[: place.start()] + option(field) + text[place.end() :]
    line, found = words.in_words(text, words.named_by(error))
    if isinstance(error, NotFound) and found and found[0].kind in LISTS and ";" not in line:
        line += f"; see '{LISTS[found[0].kind].format(found[0].ids[0])}'"
    return line


def option(field: str) -> str:
    """Returns the option that fills a field, such as ``--env-var PATH`` for ``training.environment['PATH']``; the field
    itself when no option does."""
    segments = list(_SEGMENT.finditer(field))
    for index, segment in enumerate(segments):
        if segment["field"] in OPTIONS:
            place = (segment["place"] or "").strip("'\"")
            inside = [place] if place and not place.isdigit() else []
            inside += [each["field"] for each in segments[index + 1 :]]
            return " ".join([OPTIONS[segment["field"]], *inside])
    return field
