"""Options of the whole suite, and what every test may rely on."""

from __future__ import annotations

import signal

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--target", choices=["embedded", "five"], default="embedded",
        help="where stories run: one embedded mesh (default), or five processes over TCP",
    )  # fmt: skip


def pytest_configure() -> None:
    # A shell has its background jobs ignore Ctrl-C, and what tests start would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
