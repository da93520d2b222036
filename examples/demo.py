"""Takes the iris project from nothing to a prediction, on a mesh of its own: ``python examples/demo.py [--keep]``.

Every step is a command that a user would type, printed as it runs. Nothing of the user's is touched: the home, the mesh
and the ports are the demo's own, and they are gone when it ends, unless they are to be kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
NHA = Path(sys.executable).parent / "nha"
FLOWER = "[1,2,3,4]"


def main() -> int:
    """Runs the demo; returns the exit code of the first command that failed, else 0."""
    parser = argparse.ArgumentParser(description="Takes the iris project from nothing to a prediction.")
    parser.add_argument("--keep", action="store_true", help="leave the mesh and the deployment running at the end")
    keep = parser.parse_args().keep
    home = Path(tempfile.mkdtemp(prefix="nha-demo-", dir="/tmp"))  # short: a socket's path has its limits
    demo = Demo(home)
    began = time.monotonic()
    kept = False
    try:
        demo.run()
        print(f"\nFrom nothing to a prediction in {time.monotonic() - began:.0f} s.")
        kept = keep
        demo.say_what_next(kept)
        return 0
    except subprocess.CalledProcessError as error:
        print(f"\n{shlex.join(error.cmd)} ended with {error.returncode}; its words are above", file=sys.stderr)
        return error.returncode or 1
    except (urllib.error.URLError, OSError) as error:
        print(f"\nthe prediction failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if not kept:
            demo.end()


class Demo:
    """One run, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.project = home / "iris"
        self.router, self.port = _free_ports(2)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("NHA_")},
            "HOME": str(home),
            "NHA_ROUTER__PORT": str(self.router),
            # Packages that were fetched once are not fetched again, and come from where this user has them from.
            "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR") or str(_caches() / "uv"),
        }
        for name, place in (("PIP_CONFIG_FILE", "pip/pip.conf"), ("UV_CONFIG_FILE", "uv/uv.toml")):
            file = _settings() / place
            if name not in os.environ and file.is_file():
                self.environment[name] = str(file)

    def run(self) -> None:
        """Does all of it, a command at a time."""
        shutil.copytree(HERE / "iris", self.project)
        self.step("what the model looks like")
        self.nha(
            "model", "new", "--name", "iris-clf", "--desc", "Iris flower classifier",
            "--model-file", '{"name": "clf.pkl", "required": true, "desc": "Classifier saved as pickle", "max_mb": 1}',
            "--data-file", '{"name": "measures.csv"}', "--data-file", '{"name": "species.csv"}',
        )  # fmt: skip
        self.step("150 flowers to learn from")
        self.nha("ds", "new", "--name", "iris-data-v0", "--model", "iris-clf", "--path", "./datasets/")
        self.step("the project, and an environment built for it")
        self.nha(
            "proj", "new", "--name", "botanics", "--desc", "All about flowers", "--home-dir", ".", "--model", "iris-clf"
        )
        self.nha("proj", "build", "--from-here")
        self.step("a training: a notebook with parameters, which publishes a version")
        self.nha(
            "train", "new", "--name", "experiment-v1", "--nb", "notebooks/train",
            "--params", '{"gamma": 0.001, "kernel": "poly"}', "--dataset", "iris-clf:iris-data-v0",
        )  # fmt: skip
        self.nha("movers", "list", "--model", "iris-clf")
        self.step("a deployment of that version, two replicas")
        self.nha(
            "depl", "new", "--name", "homolog", "--nb", "notebooks/predict", "--port", str(self.port),
            "--movers", "iris-clf:experiment-v1", "--n-tasks", "2",
        )  # fmt: skip
        self.step("predictions: on the deployment's own port, and through the router")
        self.predict(f"http://127.0.0.1:{self.port}/predict")
        self.predict(f"http://127.0.0.1:{self.router}/predict?project=botanics&deploy=homolog")

    def step(self, what: str) -> None:
        """Says what comes next."""
        print(f"\n# {what}", flush=True)

    def nha(self, *arguments: str) -> None:
        """Runs a command of Noronha and shows it."""
        print(f"$ nha {shlex.join(arguments)}", flush=True)
        command = [str(NHA), "--skip-questions", *arguments]
        subprocess.run(command, cwd=self.project, env=self.environment, check=True)

    def predict(self, url: str) -> None:
        """Asks for one prediction and shows the answer."""
        print(f"$ curl -X POST -H 'Content-Type: application/json' --data '{FLOWER}' '{url}'", flush=True)
        request = urllib.request.Request(url, FLOWER.encode(), {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            text = answer.read().decode()
        print(text)
        if json.loads(text)["result"] not in ("setosa", "versicolor", "virginica"):
            raise OSError(f"{text} names no species")

    def say_what_next(self, kept: bool) -> None:
        """Says where to look next."""
        if kept:
            print(f"""
It goes on running. To talk to it:

    export HOME={self.home} NHA_ROUTER__PORT={self.router}; cd {self.project}
    {NHA} train info --name experiment-v1      # what was recorded of the training
    {NHA} depl info --name homolog             # its replicas
    {NHA} mesh status                          # the services behind it
    {NHA} mesh down --stop-tasks               # end all of it; then remove {self.home}""")
            return
        print("""
Everything has been stopped and removed. Where to look next:

    make demo KEEP=1            the same, left running for a look around
    examples/iris/README.md     the project, file by file, and what to try with it
    ARCHITECTURE.md             which way a training and a prediction go
    cli/README.md               every command""")

    def end(self) -> None:
        """Stops what runs and removes the demo's home."""
        command = [str(NHA), "mesh", "down", "--stop-tasks"]
        subprocess.run(command, env=self.environment, check=False, capture_output=True, timeout=120)
        shutil.rmtree(self.home, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _settings() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


if __name__ == "__main__":
    sys.exit(main())
