"""Every input from outside of the daemon has a limit, a cost, a sender and a tested attack."""

import ast
import asyncio
import gc
import importlib
import math
import pkgutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import msgspec.inspect
import pytest

import milo_discoveryd
import milo_kube
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.server.calls.grpc_errors import InvalidRequestError
from milo_discoveryd.sources.reading import Metadata
from tests.support.rows import ROOT, file_of
from tests.tooling.outside_input.costs import NOT_MEASURED, VALIDATION, Handling, handling, request_with
from tests.tooling.outside_input.inputs import CONNECTIONS, FILES, OBJECT_FIELDS, REQUEST_FIELDS, RESPONSES, Input

ALL = {**REQUEST_FIELDS, **OBJECT_FIELDS, **RESPONSES, **FILES, **CONNECTIONS}
MAX_LOOP_MS = 500
"""A tenth of the timeout of the liveness probe in the shipped manifests."""
_READS = frozenset({"open", "read_bytes", "read_text"})
_LISTENS = frozenset({"create_server", "create_unix_server", "start_server", "add_insecure_port", "listen"})
_WRITTEN = frozenset(
    {
        "milo_discoveryd.check.listen_addresses",
        "milo_discoveryd.engagement.pending_releases",
        "milo_discoveryd.process_hardening",
        "milo_discoveryd.fleet.changes",
        "milo_discoveryd.server.connections.inner_socket",
        "milo_discoveryd.server.connections.socket_file",
        "milo_discoveryd.telemetry.audit",
        "milo_discoveryd.telemetry.status_page",
    }
)
"""Modules that open files or sockets, and read nothing from outside."""
_OF_ONE_PROCESS = frozenset({"milo_discoveryd.server.connections.inner_socket"})
"""Modules with a listener that no other process can connect to."""


def modules() -> Iterator[Any]:
    for package in (milo_discoveryd, milo_kube):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


# --- requests ---


def messages() -> list[Any]:
    found = [method.input_type for method in pb.DESCRIPTOR.services_by_name["DiscoveryService"].methods]
    for message in found:
        found += [
            field.message_type for field in message.fields if is_nested(field) and field.message_type not in found
        ]
    return found


def is_nested(field: Any) -> bool:
    return field.message_type is not None and field.message_type.file is pb.DESCRIPTOR


def test_each_request_field_has_an_input_entry() -> None:
    assert {f"{message.name}.{field.name}" for message in messages() for field in message.fields} == set(REQUEST_FIELDS)


def text_fields() -> Iterator[tuple[str, str]]:
    for message in messages():
        for field in message.fields:
            if field.type == field.TYPE_STRING:
                yield message.name, field.name


@pytest.mark.parametrize(("message", "field"), list(text_fields()))
def test_too_long_request_field_is_refused_with_a_short_message(message: str, field: str) -> None:
    long = "x" * 100_000
    is_repeated = getattr(pb, message).DESCRIPTOR.fields_by_name[field].is_repeated
    request = request_with(message, field, [long] if is_repeated else long)
    with pytest.raises(InvalidRequestError) as refused:
        VALIDATION[request.DESCRIPTOR.name](request)
    assert len(str(refused.value)) < 1_000


# --- objects ---


def object_types() -> set[type]:
    """Return the structs that objects of API servers are decoded to."""
    found: set[type] = set()
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__:
                if "metadata" not in value.__struct_fields__:
                    continue
                types = {field.name: field.type for field in msgspec.structs.fields(value)}
                if types["metadata"] is Metadata:
                    found |= set(structs(msgspec.inspect.type_info(value)))
    return found


def structs(found: Any) -> Iterator[type]:
    match found:
        case msgspec.inspect.StructType():
            yield found.cls
            for field in found.fields:
                yield from structs(field.type)
        case msgspec.inspect.UnionType():
            for member in found.types:
                yield from structs(member)
        case msgspec.inspect.ListType():
            yield from structs(found.item_type)


def test_each_field_of_an_object_has_an_input_entry() -> None:
    fields = {
        f"{kind.__name__}.{field.name}"
        for kind in object_types()
        for field in msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]
        if not any(structs(field.type))
    }
    assert fields == set(OBJECT_FIELDS)


# --- responses, files and connections ---


def test_each_decoder_has_an_input_entry() -> None:
    kinds = (msgspec.json.Decoder, msgspec.msgpack.Decoder)
    decoders = {
        f"{at.__name__}.{name}" for at in modules() for name, value in vars(at).items() if isinstance(value, kinds)
    }
    assert decoders == set(RESPONSES)


def calling(names: frozenset[str]) -> set[str]:
    """Return the modules that call a method, or a function of a module, of these names."""
    found = set()
    for module in modules():
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                found.add(module.__name__)
    return found


def test_each_module_that_reads_files_has_an_input_entry() -> None:
    assert calling(_READS) - _WRITTEN == set(FILES)


def test_each_module_that_listens_has_an_input_entry() -> None:
    assert calling(_LISTENS) - _OF_ONE_PROCESS == set(CONNECTIONS)


# --- the entries ---


@pytest.mark.parametrize("found", ALL.values(), ids=ALL)
def test_input_entry_has_a_limit_a_cost_a_sender_and_an_attack(found: Input) -> None:
    assert found.limit
    assert found.sender
    assert 0 <= found.kept <= 128 << 20
    assert 0 <= found.loop_ms <= MAX_LOOP_MS
    assert "::" in found.attack


def test_attacks_of_input_entries_are_tests_that_pytest_collects() -> None:
    attacks = (found.attack.split("::", 1) for found in ALL.values())
    nodes = sorted({f"{file_of(path)}::{name}" for path, name in attacks})
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *nodes]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.OK, done.stdout[-1000:] + done.stderr[-1000:]


# --- the costs ---

MEASURED = [name for name, found in ALL.items() if name not in NOT_MEASURED and (found.kept or found.loop_ms)]
SPARE_BYTES = 2 << 10
"""Memory of the values that contain the input, such as a request or an observation."""
SPARE = 5
"""The factor by which a busy or slow machine may exceed the stated time of the event loop."""
SHORTEST_MS = 1.0


def test_input_entries_listed_as_not_measured_exist() -> None:
    assert NOT_MEASURED.keys() <= ALL.keys()


@pytest.mark.parametrize("name", MEASURED)
async def test_largest_input_costs_no_more_than_its_entry_states(name: str, tmp_path: Path) -> None:
    # Inputs that take no time of the event loop are handled in a thread, which may take any time.
    limit_ms = max(SHORTEST_MS, SPARE * ALL[name].loop_ms) if ALL[name].loop_ms else math.inf
    limit_bytes = ALL[name].kept + SPARE_BYTES
    for mark in ("ta", "tb", "tc", "td", "te"):  # the first one imports modules; others share the processor
        took_ms = cpu_ms(handling(name, mark, tmp_path))
        if took_ms <= limit_ms:
            break
    for mark in ("ka", "kb", "kc"):  # other threads of this process may allocate memory meanwhile
        kept = kept_bytes(handling(name, mark, tmp_path))
        if kept <= limit_bytes:
            break
    assert took_ms <= limit_ms
    assert kept <= limit_bytes
    await canceled_tasks()


def kept_bytes(handle: Handling) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        held = handle()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        del held
        return after - before
    finally:
        tracemalloc.stop()


def cpu_ms(handle: Handling) -> float:
    gc.collect()
    began = time.thread_time()
    held = handle()
    took_s = time.thread_time() - began
    del held
    return 1000 * took_s


async def canceled_tasks() -> None:
    """Cancel the requests that wait for a reply."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
