"""The example project from its model's definition to a prediction, by the commands as its users type them."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "iris"
FLAGS = ("--debug", "--pretty", "--skip-questions")


def _post(address: str, body: str, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(address, data=body.encode(), headers=headers, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, json.load(answer)


@pytest.fixture(scope="module")
def botanist(user: Any) -> Iterator[Any]:
    """A user in the folder of the example, who has trained it once."""
    folder = user.home / "iris"
    shutil.copytree(EXAMPLE, folder)
    user.cwd = folder
    run = lambda *arguments: user.run(*FLAGS, *arguments, check=True, timeout=600)  # noqa: E731
    run(
        "model", "new", "--name", "iris-clf", "--desc", "Iris flower classifier",
        "--model-file", '{"name": "clf.pkl", "required": true, "desc": "Classifier saved as pickle", "max_mb": 1}',
        "--data-file", '{"name": "measures.csv"}', "--data-file", '{"name": "species.csv"}',
    )  # fmt: skip
    run(
        "ds", "new", "--name", "iris-data-v0", "--model", "iris-clf", "--details", '{"extraction_date": "2019-04-01"}',
        "--path", "./datasets/",
    )  # fmt: skip
    run(
        "proj", "new", "--name", "botanics", "--desc", "An experiment", "--git-repo", "https://my_git_server/botanics",
        "--home-dir", ".", "--model", "iris-clf",
    )  # fmt: skip
    built = run("proj", "build", "--from-here")
    assert "git_version" in built.stdout or "built_from: local" in built.stdout
    trained = run(
        "train", "new", "--name", "experiment-v1", "--nb", "notebooks/train", "--params",
        '{"gamma": 0.001, "kernel": "poly"}', "--dataset", "iris-clf:iris-data-v0",
    )  # fmt: skip
    assert "FINISHED" in trained.stderr and "iris-clf:experiment-v1" in trained.stderr
    yield user


def test_the_records_are_listed_by_their_keys(botanist: Any) -> None:
    assert botanist.nha("bvers", "list") == "Listing Build Version(s):\nbotanics:latest\n"
    assert botanist.nha("movers", "list") == "Listing Model Version(s):\niris-clf:experiment-v1\n"
    assert botanist.nha("ds", "list") == "Listing Dataset(s):\niris-clf:iris-data-v0\n"
    assert botanist.nha("train", "list") == "Listing Training Execution(s):\nbotanics:experiment-v1\n"
    assert botanist.nha("model", "list") == "Listing Model Record(s):\niris-clf\n"
    assert botanist.nha("proj", "list", "-m", "iris-clf") == "Listing Project(s):\nbotanics\n"
    assert botanist.nha("depl", "list", "--filter", '{"name": "none"}') == "No Deployment(s) found\n"


def test_the_training_tells_what_it_was_made_of(botanist: Any) -> None:
    found = botanist.json("train", "info", "--name", "experiment-v1")
    assert found["task"]["state"] == "FINISHED" and found["task"]["progress"] == 1
    assert found["notebook"] == "notebooks/train.ipynb" and found["bvers"].startswith("botanics:latest@")
    assert found["details"]["params"] == {"gamma": 0.001, "kernel": "poly"}
    assert found["movers"] == ["iris-clf:experiment-v1@1"] and found["ds"] == ["iris-clf:iris-data-v0@1"]
    version = botanist.json("movers", "info", "--model", "iris-clf", "--name", "experiment-v1")
    assert version["train"] == "botanics:experiment-v1" and version["ds"] == "iris-clf:iris-data-v0@1"
    assert version["details"]["params"]["kernel"] == "poly" and "metrics" in version["details"]
    assert [each["name"] for each in version["files"]] == ["clf.pkl"]


def test_the_log_stays(botanist: Any) -> None:
    assert botanist.run("train", "logs", "--name", "experiment-v1", check=True).stdout != ""
    log = botanist.run("bvers", "logs", check=True).stdout
    last = botanist.run("bvers", "logs", "--tail", "1", check=True).stdout
    assert last and log.endswith(last) and len(last) < len(log)


@pytest.mark.parametrize(
    "arguments,found",
    [
        (("train", "list", "-f", '{"task.state": "finished"}'), "botanics:experiment-v1"),
        (("train", "list", "-f", '{"task.state": "failed"}'), None),
        (("train", "list", "-f", '{"details.params.gamma": {"$lt": 0.01}}'), "botanics:experiment-v1"),
        (("train", "list", "-f", '{"bvers.tag": "latest"}'), "botanics:experiment-v1"),
        (("train", "list", "-f", '{"ds.name": "iris-data-v0"}'), "botanics:experiment-v1"),
        (("movers", "list", "-f", '{"details.params.kernel": "poly"}'), "iris-clf:experiment-v1"),
        (("movers", "list", "-f", '{"_id": "iris-clf:experiment-v1"}'), "iris-clf:experiment-v1"),
        (("movers", "list", "-f", '{"name": "experiment-v"}'), None),
        (("movers", "list", "-f", '{"name": {"$regex": "^exp"}}'), "iris-clf:experiment-v1"),
        (("movers", "list", "-f", '{"train.name": "experiment-v1"}'), "iris-clf:experiment-v1"),
        (("movers", "list", "-f", '{"lightweight": false}'), "iris-clf:experiment-v1"),
        (("movers", "list", "--train", "experiment-v1"), "iris-clf:experiment-v1"),
        (("movers", "list", "--train", "experiment-v1", "--proj", "botanics"), "iris-clf:experiment-v1"),
        (("movers", "list", "--dataset", "iris-data-v0"), "iris-clf:experiment-v1"),
        (("movers", "list", "--model", "iris-clf", "--dataset", "iris-data-v0"), "iris-clf:experiment-v1"),
        (("movers", "list", "--dataset", "iris-data"), None),
        (("bvers", "list", "-f", '{"built_from": "local"}'), "botanics:latest"),
        (("bvers", "list", "-f", '{"tag": "latest", "proj": "botanics"}'), "botanics:latest"),
        (("proj", "list", "-f", '{"models": "iris-clf"}'), "botanics"),
        (("model", "list", "-f", '{"desc": "Iris flower classifier"}'), "iris-clf"),
        (("model", "list", "-f", '{"model_files.name": "clf.pkl"}'), "iris-clf"),
        (("ds", "list", "-f", '{"details.extraction_date": "2019-04-01"}'), "iris-clf:iris-data-v0"),
        (("ds", "list", "-f", '{"stored": true, "compressed": false}'), "iris-clf:iris-data-v0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_filters_with_the_known_fields(botanist: Any, arguments: tuple[str, ...], found: str | None) -> None:
    assert botanist.nha(*arguments, "-o", "name") == (f"{found}\n" if found else "")


def test_a_deployment_answers_on_its_port_and_through_the_router(botanist: Any, free: Any) -> None:
    port = free()
    made = botanist.run(
        *FLAGS, "depl", "new", "--name", "homolog", "--nb", "notebooks/predict", "--port", str(port), "--movers",
        "iris-clf:experiment-v1", "--n-tasks", "1", check=True, timeout=600,
    )  # fmt: skip
    assert f"http://127.0.0.1:{port}/predict" in made.stderr
    status, answer = _post(f"http://127.0.0.1:{port}/predict", "[1,2,3,4]")
    assert status == 200 and answer["result"] == "setosa"
    assert [each.rpartition(":")[0] or each for each in answer["metadata"]["model_version"]]
    routed = f"http://127.0.0.1:{botanist.router_port}/predict?project=botanics&deploy=homolog"
    status, answer = _post(routed, "[1,2,3,4]", **{"Content-Type": "application/JSON"})
    assert status == 200 and answer["result"] == "setosa" and "datetime" in answer["metadata"]
    found = botanist.json("depl", "info", "--name", "homolog")
    assert found["availability"] == "100%" and found["state"] == "READY" and found["host_port"] == port
    assert "availability: 100%" in botanist.nha("depl", "info", "--name", "homolog")
    assert "IN_USE" in botanist.refused("movers", "rm", "--model", "iris-clf", "--name", "experiment-v1")
    assert "IN_USE" in botanist.refused("model", "rm", "--name", "iris-clf")
    botanist.nha("train", "rm", "--name", "experiment-v1")
    by_training = ("movers", "list", "--train", "experiment-v1", "--proj", "botanics", "-o", "name")
    assert botanist.nha(*by_training) == "iris-clf:experiment-v1\n", "what a version came from outlives the training"
    botanist.nha("proj", "rm", "--name", "botanics")
    assert botanist.nha("depl", "list") == "No Deployment(s) found\n"
    assert botanist.nha("movers", "list") == "Listing Model Version(s):\niris-clf:experiment-v1\n"
    botanist.nha("model", "rm", "--name", "iris-clf")
    assert botanist.nha("movers", "list") == "No Model Version(s) found\n"
