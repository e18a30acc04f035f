"""The command line of `milo-objects publish`: its declaration and its options."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from milo_objects import Kind
from milo_objects.command import command, objects_bytes, read_declaration

PAGE = Path(__file__).parents[3] / "docs" / "objects-nats.md"
DECLARATION = """\
objects:
- resource: v1/namespaces
  fields: [metadata.labels, status.phase]
- resource: compute.datumapis.com/v1alpha/workloads
  fields: ["spec.placements[*].cityCodes"]
  labelSelector: "!internal"
"""


def test_declaration_has_kinds_with_fields_and_selectors(tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(DECLARATION)
    assert read_declaration(file) == (
        Kind("v1/namespaces", ("metadata.labels", "status.phase")),
        Kind("compute.datumapis.com/v1alpha/workloads", ("spec.placements[*].cityCodes",), "!internal"),
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("objects: []", "declare at least one kind"),
        ("objects: [{resource: v1/pods}, {resource: v1/pods}]", "v1/pods: declared twice"),
        ("objects: [{resource: apps/v1/deployments}, {resource: apps/v1beta1/deployments}]", "declared twice"),
        ("objects: [{resource: v1/secrets}]", "secrets: true"),
        ("objects: [{resource: v1/pods, field: [a]}]", "unknown field `field`"),
        ("kinds: []", "unknown field `kinds`"),
        ("objects: [", "line 1: expected the node content"),
        (
            "objects:\n- resource: v1/pods\n  fields: [spec.a[*].b]",
            "line 3: expected alphabetic or numeric character, ",
        ),
        ("objects:\n- resource: v1/pods\n  fields: [spec.a[*].b]", "found ']'; write a field with [*] in quotes"),
        ("objects: \0", "special characters are not allowed"),
        ("- a", "Expected `object`"),
    ],
)
def test_invalid_declaration_is_refused_with_its_file(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(content)
    done = CliRunner().invoke(command, ["publish", str(file)])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"milo-objects: {file}")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "\\n" not in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_signal_ends_the_command_without_a_word(tmp_path: Path, number: int, status: int) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(DECLARATION)
    command_line = [sys.executable, "-m", "milo_objects.command", "publish", str(file), "--listen", "127.0.0.1:0"]
    command_line += ["--address", f"unix://{tmp_path}/none.sock"]
    running = await asyncio.create_subprocess_exec(*command_line, stderr=asyncio.subprocess.PIPE)
    assert running.stderr is not None
    async with asyncio.timeout(60):
        await running.stderr.readuntil(b"; retrying")
        running.send_signal(number)
        said = (await running.stderr.read()).decode()
        assert await running.wait() == status
    assert "Abort" not in said
    assert "Traceback" not in said


def test_each_declaration_of_the_page_can_be_published(tmp_path: Path) -> None:
    declarations = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert declarations
    for declaration in declarations:
        file = tmp_path / "objects.yaml"
        file.write_text(declaration)
        assert read_declaration(file)


def test_missing_declaration_is_refused_with_its_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["publish", str(tmp_path / "absent.yaml")])
    assert done.stderr == f"milo-objects: {tmp_path}/absent.yaml: No such file or directory\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-bytes", "10G"], "'10G' is not a number of bytes, such as 10Gi"),
        (["--replicas", "6"], "6 is not in the range"),
        (["--nats-credentials", "missing"], "'missing' does not exist"),
    ],
)
def test_invalid_option_is_a_usage_error(tmp_path: Path, options: list[str], words: str) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(DECLARATION)
    done = CliRunner().invoke(command, ["publish", str(file), *options])
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("content", "expected"), [("1073741824\n", 256 << 20), ("max\n", 1 << 30), (f"{1 << 63}", 1 << 30), (None, 1 << 30)]
)
def test_objects_fit_into_the_memory_of_the_container(tmp_path: Path, content: str | None, expected: int) -> None:
    """Tenants choose how many objects there are, and the records of objects take memory besides them."""
    file = tmp_path / "memory.max"
    if content is not None:
        file.write_text(content)
    assert objects_bytes([file]) == expected
