"""The shape of the repository is what its documents say."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"protos", "services", "cli", "toolkit", "base-image", "tests", "docs", "examples"}
SERVICES = ("metadata", "builder", "runner", "store", "router")


def _tracked() -> list[str]:
    answer = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return answer.stdout.splitlines()


def test_only_the_agreed_folders_are_at_the_top() -> None:
    tops = {path.split("/")[0] for path in _tracked() if "/" in path and not path.startswith(".")}
    assert tops == FOLDERS


def test_every_folder_says_what_it_is_for() -> None:
    places = [*FOLDERS, *(f"services/{name}" for name in (*SERVICES, "chassis"))]
    missing = [place for place in places if not (ROOT / place / "README.md").is_file()]
    assert missing == []


def test_noronha_is_a_namespace_and_no_module_is_a_junk_drawer() -> None:
    python = [path for path in _tracked() if path.endswith(".py")]
    assert [path for path in python if path.endswith("/noronha/__init__.py")] == []
    junk = re.compile(r"(^|/)(utils?|common|helpers?|misc|base|core|lib)(\.py|/)")
    assert [path for path in python if junk.search(path)] == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_the_same_parts(service: str) -> None:
    folder = ROOT / "services" / service / "noronha" / service
    parts = {"service.py"} | (
        {"ads.py", "snapshot.py", "follow.py"} if service == "router" else {"backend.py", "backends"}
    )
    assert {part for part in parts if not (folder / part).exists()} == set()


@pytest.mark.parametrize("service", [each for each in SERVICES if each != "router"])
def test_every_backend_keeps_the_law_of_its_port(service: str) -> None:
    """Each is bound to a suite of tests/conformance, which says so by naming it in ``binds``."""
    bound = set()
    for path in (ROOT / "tests" / "conformance").glob("test_*.py"):
        for made in (each for each in ast.parse(path.read_text()).body if isinstance(each, ast.ClassDef)):
            if any(ast.unparse(base).endswith("Suite") for base in made.bases):
                assigned = (each for each in made.body if isinstance(each, ast.Assign))
                bound |= {ast.unparse(each.value) for each in assigned if ast.unparse(each.targets[0]) == "binds"}
    schemes = importlib.import_module(f"noronha.{service}.backends").SCHEMES
    assert schemes and {place.path.partition(":")[2] for place in schemes.values()} <= bound


def test_arrows_point_one_way() -> None:
    answer = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stdout


def test_the_repository_speaks_of_noronha_alone() -> None:
    """No machine's paths and no package hosts; `.ci/run` alone may name the test bed beside the project."""
    forbidden = re.compile(
        r"/work/|/opt/wheels|\.library/|pypi\.org|files\.pythonhosted|registry\.npmjs", re.IGNORECASE
    )
    own = Path(__file__).name
    found = []
    for path in _tracked():
        if path.endswith((".csv", ".ipynb", ".png", ".binpb")) or path.endswith(own):
            continue
        text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
        found += [f"{path}: {match.group()}" for match in forbidden.finditer(text)]
        if path != ".ci/run" and "../shared" in text:
            found.append(f"{path}: a folder outside the project")
    assert found == []
