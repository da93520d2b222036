"""The contract keeps its own grammar: comments, paging, masks, etags, enums, units."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from noronha.rpc import dial

ROOT = Path(__file__).resolve().parents[2]
OWN = "noronha.v1"


@pytest.fixture(scope="session")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generates the stubs anew, with the descriptor image beside them."""
    folder = tmp_path_factory.mktemp("stubs")
    subprocess.run(
        [
            sys.executable, str(ROOT / "protos" / "generate.py"), "--output", str(folder),
            "--descriptors", str(folder / "contract.binpb"),
        ],
        check=True, timeout=240,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def files(regenerated: Path) -> list[descriptor_pb2.FileDescriptorProto]:
    image = descriptor_pb2.FileDescriptorSet.FromString((regenerated / "contract.binpb").read_bytes())
    return [file for file in image.file if file.package == OWN]


def _messages(file, path=(4,), parent=None):
    items = file.message_type if parent is None else parent.nested_type
    for index, message in enumerate(items):
        here = (*path, index)
        if message.options.map_entry:
            continue
        yield here, message
        yield from _messages(file, (*here, 3), message)


def _enums(file):
    for index, enum in enumerate(file.enum_type):
        yield (5, index), enum
    for path, message in _messages(file):
        for index, enum in enumerate(message.enum_type):
            yield (*path, 4, index), enum


def test_the_committed_stubs_are_those_of_the_protos(regenerated: Path) -> None:
    fresh = {path.name: path.read_bytes() for path in (regenerated / "noronha" / "v1").iterdir() if path.is_file()}
    committed_folder = ROOT / "protos" / "python" / "noronha" / "v1"
    committed = {path.name: path.read_bytes() for path in committed_folder.iterdir() if path.is_file()}
    assert fresh.keys() == committed.keys(), "run make protos"
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "run make protos"


def test_stubs_dictate_no_version_of_protobuf_or_grpc() -> None:
    for path in (ROOT / "protos" / "python" / "noronha" / "v1").glob("*.py"):
        text = path.read_text()
        assert "ValidateProtobufRuntimeVersion" not in text
        assert "GRPC_GENERATED_VERSION" not in text


def test_everything_in_the_contract_is_commented(files) -> None:
    bare = []
    for file in files:
        said = {tuple(each.path) for each in file.source_code_info.location if each.leading_comments.strip()}
        for path, message in _messages(file):
            if path not in said:
                bare.append(f"{file.name}: message {message.name}")
            bare += [
                f"{file.name}: field {message.name}.{field.name}"
                for index, field in enumerate(message.field)
                if (*path, 2, index) not in said
            ]
            bare += [
                f"{file.name}: oneof {message.name}.{oneof.name}"
                for index, oneof in enumerate(message.oneof_decl)
                if not oneof.name.startswith("_") and (*path, 8, index) not in said
            ]
        for path, enum in _enums(file):
            if path not in said:
                bare.append(f"{file.name}: enum {enum.name}")
            bare += [
                f"{file.name}: value {enum.name}.{value.name}"
                for index, value in enumerate(enum.value)
                if (*path, 2, index) not in said
            ]
        for index, service in enumerate(file.service):
            if (6, index) not in said:
                bare.append(f"{file.name}: service {service.name}")
            bare += [
                f"{file.name}: rpc {service.name}.{method.name}"
                for number, method in enumerate(service.method)
                if (6, index, 2, number) not in said
            ]
    assert bare == []


def test_lists_page_filter_and_order_and_never_stream(files) -> None:
    messages = {message.name: message for file in files for _, message in _messages(file)}
    lists = [m for file in files for s in file.service for m in s.method if m.name.startswith("List")]
    wrong = []
    for method in lists:
        if method.server_streaming:
            if method.name != "ListReferencedDigests":  # a service's own sweep over everything, not a page for people
                wrong.append(f"{method.name} streams")
            continue
        asked = {field.name for field in messages[method.input_type.rpartition(".")[2]].field}
        answered = {field.name for field in messages[method.output_type.rpartition(".")[2]].field}
        if not {"page_size", "page_token", "filter", "order_by", "read_mask"} <= asked:
            wrong.append(f"{method.name} asks {asked}")
        if "next_page_token" not in answered:
            wrong.append(f"{method.name} answers {answered}")
    assert lists and wrong == []


def test_updates_have_masks_and_deletions_etags(files) -> None:
    messages = {message.name: message for file in files for _, message in _messages(file)}
    wrong = []
    for file in files:
        for service in file.service:
            for method in service.method:
                fields = {field.name for field in messages[method.input_type.rpartition(".")[2]].field}
                if method.name.startswith(("Update", "Publish")) and "update_mask" not in fields:
                    wrong.append(method.name)
                if method.name.startswith("Delete") and method.name != "DeleteBlobs" and "etag" not in fields:
                    wrong.append(method.name)
                if method.name.startswith(("Create", "Publish")) and "request_id" not in fields:
                    wrong.append(method.name)
    assert wrong == []


def test_enums_begin_with_unspecified_and_numbers_carry_units(files) -> None:
    wrong = []
    for file in files:
        for _, enum in _enums(file):
            if enum.value[0].number != 0 or not enum.value[0].name.endswith("_UNSPECIFIED"):
                wrong.append(f"{enum.name} begins with {enum.value[0].name}")
        for _, message in _messages(file):
            for field in message.field:
                if field.name in ("size", "timeout_seconds", "max", "length"):
                    wrong.append(f"{message.name}.{field.name} has no unit or is no Duration")
                if field.type_name in (".google.protobuf.Struct", ".google.protobuf.Value", ".google.protobuf.Any"):
                    wrong.append(f"{message.name}.{field.name} would turn integers into doubles")
    assert wrong == []


def test_retried_methods_are_the_reads_and_the_writes_with_a_request_id(files) -> None:
    messages = {message.name: message for file in files for _, message in _messages(file)}
    harmless = {}
    for file in files:
        for service in file.service:
            if service.name == "Records":
                continue  # services repeat these themselves, knowing what came of the first try
            for method in service.method:
                fields = {field.name for field in messages[method.input_type.rpartition(".")[2]].field}
                reads = method.name.startswith(("Get", "List", "Stat", "Search")) and not method.server_streaming
                own = service.name == "Tasks" and not method.server_streaming
                writes = "request_id" in fields
                if reads or writes or own:
                    harmless.setdefault(service.name, set()).add(method.name)
    assert {service: set(methods) for service, methods in dial.RETRIED.items()} == harmless


UNTOLD = {
    "CONFLICT",  # between a backend and the change that is tried again
    "ADDRESS_IN_USE", "ALREADY_RUNNING", "BAD_ADDRESS", "BACKEND_NOT_INSTALLED", "BAD_PEER", "BAD_SETTING", "INDEX_TOO_NEW",
    "NEWER_SCHEMA", "NOT_INSTALLED", "NO_ENVOY", "RECORDS_IN_USE", "SOCKET_PATH_TOO_LONG", "STATE_DIR_READ_ONLY",
    "UNKNOWN_BACKEND", "UNKNOWN_SERVICE",
}  # fmt: skip
"""Reasons that reach no caller: most of them are why a server or a service does not come up."""


def test_reasons_in_the_contract_are_raised_and_those_raised_are_in_the_contract() -> None:
    told = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", _texts(ROOT / "protos" / "noronha", "*.proto")))
    servers = "".join(_texts(ROOT / root, "*.py") for root in ("services", "protos/python/noronha/rpc"))
    own = servers + _texts(ROOT / "toolkit" / "noronha", "*.py")
    assert sorted(told - set(re.findall(r"\"([A-Z]+(?:_[A-Z]+)+)\"", own))) == [], "the contract tells of what nothing raises"
    told_at_all = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", _texts(ROOT / "protos" / "noronha", "*.proto")))
    raised = set(re.findall(r"reason(?:: str)? ?= ?\"([A-Z]+(?:_[A-Z]+)*)\"", servers))
    assert len(raised) > 50
    assert sorted(raised - told_at_all - UNTOLD) == [], "services raise what the contract does not tell of"
    assert sorted(UNTOLD - raised) == [], "nothing raises these any more"


def _texts(root: Path, pattern: str) -> str:
    return "\n".join(path.read_text() for path in sorted(root.rglob(pattern)))


@pytest.mark.parametrize("resolution", ["lowest", "highest"])
def test_stubs_work_beside_the_oldest_and_the_newest_that_we_allow(resolution: str, tmp_path: Path) -> None:
    """Makes an environment with what the base install allows of protobuf and grpcio, and puts the stubs to work there."""
    allowed = [line for name in ("googleapis-common-protos", "grpcio", "protobuf") for line in _required(name)]
    assert len(allowed) == 3
    environment = tmp_path / "environment"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True, timeout=60)
    python = str(environment / "bin" / "python")
    install = [*uv, "pip", "install", "-q", "--python", python, "--only-binary", ":all:", "--resolution", resolution]
    answer = subprocess.run([*install, *allowed], capture_output=True, text=True, timeout=240, check=False)
    if answer.returncode != 0 and (why := NO_INDEX.search(answer.stderr)):
        pytest.skip(f"no package index can be reached: {why.group()}")
    assert answer.returncode == 0, answer.stderr
    worked = subprocess.run(
        [python, str(Path(__file__).with_name("stubs_at_work.py"))],
        env={"PYTHONPATH": str(ROOT / "protos" / "python")}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert worked.returncode == 0, worked.stderr
    versions = dict(each.split("==") for each in worked.stdout.split())
    assert versions.keys() == {"grpcio", "protobuf"}
    if resolution == "lowest":
        floors = {name: re.split(r"[<>=,]+", _required(name)[0])[1] for name in versions}
        assert versions["protobuf"].startswith(floors["protobuf"]), "what is allowed and what is tried are the same"


NO_INDEX = re.compile(
    r"error sending request|dns error|Could not connect|Connection refused|Network connectivity is disabled"
    r"|operation timed out|network was disabled",
    re.IGNORECASE,
)
"""What uv says where there is no network; anything else that it says is a failure of ours."""


def _required(name: str) -> list[str]:
    """Returns what the base install asks for of a package."""
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[0]
    return re.findall(rf'"({name}[<>=][^"]*)"', text)
