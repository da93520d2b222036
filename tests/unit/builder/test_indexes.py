"""What a user set for uv or pip counts for builds."""

from __future__ import annotations

from pathlib import Path

from noronha.builder import indexes


def test_what_pip_is_told_fills_the_gaps(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://index.local/simple\nextra-index-url =\n  https://one\n  https://two\n"
    )
    found = indexes.for_uv({"PIP_FIND_LINKS": "/a /b", "PIP_CERT": "/ca.pem"}, pip_files=[file])
    assert found["UV_DEFAULT_INDEX"] == "https://index.local/simple"
    assert found["UV_EXTRA_INDEX_URL"] == "https://one https://two"
    assert found["UV_FIND_LINKS"] == "/a,/b"
    assert found["SSL_CERT_FILE"] == "/ca.pem"


def test_what_uv_is_told_stands() -> None:
    given = {"UV_INDEX_URL": "https://mine", "PIP_INDEX_URL": "https://pip", "SSL_CERT_FILE": "/a", "PIP_CERT": "/b"}
    found = indexes.for_uv(given, pip_files=[])
    assert found["UV_INDEX_URL"] == "https://mine"
    assert "UV_DEFAULT_INDEX" not in found
    assert found["SSL_CERT_FILE"] == "/a"


def test_the_variable_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://file\n")
    assert (
        indexes.for_uv({"PIP_INDEX_URL": "https://variable"}, pip_files=[file])["UV_DEFAULT_INDEX"]
        == "https://variable"
    )


def test_the_meshs_own_environment_and_settings_stay_out() -> None:
    found = indexes.for_uv(
        {"VIRTUAL_ENV": "/v", "PYTHONPATH": "/p", "NHA_MONGO__PSWD": "x", "HOME": "/h"}, pip_files=[]
    )
    assert "HOME" in found
    assert not {"VIRTUAL_ENV", "PYTHONPATH", "NHA_MONGO__PSWD"} & set(found)


def test_a_broken_file_of_pip_is_pips_to_complain_about(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_bytes(b"\xff not a [section\n=")
    assert "UV_DEFAULT_INDEX" not in indexes.for_uv({}, pip_files=[file])


def test_credentials_leave_a_line() -> None:
    assert (
        indexes.without_credentials("get https://me:secret@h/x and http://t0ken@i/y")
        == "get https://h/x and http://i/y"
    )
