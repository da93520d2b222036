"""The log of calls: a line of JSON each, bounded in size."""

from __future__ import annotations

import json
from pathlib import Path

from noronha.chassis.call_log import CallLog


def test_every_call_is_a_line_of_json_whatever_the_client_sent(tmp_path: Path) -> None:
    log = CallLog(tmp_path / "calls.log", 1 << 20)
    log.write(1.5, 'a"b\n', "/noronha.v1.Mesh/GetInfo", 'user:"é"', "OK", 0.25)
    log.close()
    (line,) = (tmp_path / "calls.log").read_text().splitlines()
    assert json.loads(line) == {
        "time": 1.5, "request": 'a"b\n', "method": "/noronha.v1.Mesh/GetInfo", "principal": 'user:"é"', "code": "OK",
        "milliseconds": 0.25,
    }  # fmt: skip


def test_the_log_is_put_aside_when_it_is_full_and_counted_on_after_a_start(tmp_path: Path) -> None:
    path = tmp_path / "calls.log"
    for _ in range(3):
        log = CallLog(path, 1000)
        for number in range(5):
            log.write(0, f"r{number}", "/m", "user:a", "OK", 1)
        log.close()
    assert path.stat().st_size <= 1000 and 0 < (tmp_path / "calls.log.1").stat().st_size <= 1000
