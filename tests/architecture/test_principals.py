"""The table of who may call what covers the contract, row by row."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import noronha.v1
from noronha.chassis import principals
from noronha.chassis.principals import TABLE, Kind, Principal, Tokens
from noronha.rpc.errors import PermissionDenied, Unauthenticated


def _rpcs() -> set[str]:
    """Returns every rpc of every service in the contract, found, not listed."""
    found = set()
    for module in pkgutil.iter_modules(noronha.v1.__path__):
        described = getattr(importlib.import_module(f"noronha.v1.{module.name}"), "DESCRIPTOR", None)
        for service in getattr(described, "services_by_name", {}).values():
            found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return found


def test_every_rpc_has_its_row_and_no_row_is_left_over() -> None:
    assert {row for row in TABLE if row.startswith("/noronha.v1.")} == _rpcs()


@pytest.mark.parametrize("rpc", sorted(TABLE))
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
def test_row(rpc: str, kind: Kind) -> None:
    principal = Principal(kind, "someone")
    if kind in TABLE[rpc]:
        principals.authorize(rpc, principal)
    else:
        with pytest.raises(Unauthenticated if kind is Kind.ANONYMOUS else PermissionDenied):
            principals.authorize(rpc, principal)


def test_nobody_calls_what_no_row_names() -> None:
    for kind in Kind:
        with pytest.raises((Unauthenticated, PermissionDenied)):
            principals.authorize("/noronha.v1.Metadata/Nonsense", Principal(kind, "someone"))


def test_tasks_reach_no_deletion_and_nothing_that_starts_work() -> None:
    open_to_tasks = {
        row.rpartition("/")[2] for row, kinds in TABLE.items() if Kind.TASK in kinds and "Tasks" not in row
    }
    assert not {
        name for name in open_to_tasks if name.startswith(("Delete", "Update", "CreateT", "CreateD", "CreateB"))
    }


def test_tokens_are_verified_not_believed() -> None:
    tokens = Tokens(b"k" * 32)
    principal = Principal(Kind.TASK, "projects/p/trainings/t", project="projects/p", models=("models/m",))
    token = tokens.mint(principal)
    assert tokens.verify(token) == principal
    prefix, payload, mac = token.split(".")
    forged = tokens.mint(Principal(Kind.OWNER, "me")).split(".")[1]
    for wrong in (
        "",
        "x",
        f"{prefix}.{forged}.{mac}",
        f"{prefix}.{payload}.",
        f"none.{payload}.{mac}",
        token + "é",
        token[:-2],
    ):
        with pytest.raises(Unauthenticated):
            tokens.verify(wrong)
    with pytest.raises(Unauthenticated):
        Tokens(b"o" * 32).verify(token)
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.verify(tokens.mint(principal, lifetime=-1))
