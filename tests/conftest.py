"""Options of the whole suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--target", choices=["embedded", "five"], default="embedded",
        help="where stories run: one embedded mesh (default), or five processes over TCP",
    )  # fmt: skip
