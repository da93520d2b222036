"""The documents at the top speak of what is here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_its_topmost_section_is_this_version() -> None:
    declared = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert declared and newest
    assert newest.group(1) == declared.group(1).partition(".dev")[0]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "tests/README.md"])
def test_the_targets_they_name_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)|^    make ([a-z-]+)", (ROOT / document).read_text(), re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


@pytest.mark.parametrize("document", sorted(path.name for path in ROOT.glob("*.md")))
def test_the_places_they_name_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:protos|services|toolkit|cli|tests|docs|examples)/[\w./-]*)`", text)
    assert [place for place in [*linked, *named] if not (ROOT / place).exists()] == []
