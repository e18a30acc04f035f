"""Tests of the commands `run` and `objects`, and of the demo's address."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from clients.python.tests.scripted_daemon import ScriptedDaemon
from milo_discovery_cli.local_daemon import demo_address

from .command_process import FLEET, running

PROGRAM = """\
import os, signal, sys
sys.stdout.write(f"VERSION {os.environ['MILO_DISCOVERY_ADDRESS']} {sys.argv[1:]}\\n")
sys.stdout.flush()
signal.sigwait([signal.SIGTERM])
print("ended", flush=True)
"""


async def test_run_command_restarts_the_operator_when_a_file_changes_and_ends_it_on_sigterm(tmp_path: Path):
    program = tmp_path / "my_operator.py"
    program.write_text(PROGRAM.replace("import os", "import signal; signal.pthread_sigmask(0, [15])\nimport os"))
    async with running("run", str(program), "--", "-v", address="unix:///daemon.sock") as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"VERSION unix:///daemon.sock ['-v']\n"
        changed = program.read_text().replace("VERSION", "CHANGED")
        (tmp_path / "next").write_text(changed)
        (tmp_path / "next").replace(program)
        assert await process.stdout.readline() == b"ended\n"
        assert await process.stdout.readline() == b"CHANGED unix:///daemon.sock ['-v']\n"
        process.send_signal(signal.SIGTERM)
        assert await process.stdout.readline() == b"ended\n"
        assert await process.wait() == 0


async def test_run_command_waits_for_a_file_change_after_the_operator_failed(tmp_path: Path):
    program = tmp_path / "my_operator.py"
    program.write_text("raise SystemExit(3)")
    async with running("run", str(program), address="unix:///daemon.sock") as process:
        assert process.stderr is not None
        while b"exited with status 3" not in await process.stderr.readline():
            pass
        program.write_text("print('fixed', flush=True)")
        assert process.stdout is not None
        assert await process.stdout.readline() == b"fixed\n"


async def test_run_command_without_a_demo_suggests_the_command_that_starts_one(tmp_path: Path):
    program = tmp_path / "my_operator.py"
    program.write_text("")
    async with running("run", str(program), address="", TMPDIR=str(tmp_path)) as process:
        _, err = await process.communicate()
        assert (process.returncode, b"start ./dev demo" in err) == (1, True)


@pytest.mark.parametrize(
    ("operator", "cause"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nowhere.invalid:1", "Name or service not known"),
        ("a..invalid:1", "the host is not a valid name"),
    ],
)
async def test_objects_command_error_contains_the_address_and_the_cause(command, operator: str, cause: str):
    outcome = await command("objects", "--operator", operator)
    page = f"http://{operator}/debug/objects"
    expected = f"milo-discovery: cannot read {page}: {cause}; set --operator to the operator's HOST:PORT\n"
    assert (outcome.status, outcome.err) == (1, expected)


async def test_objects_command_reports_that_the_server_does_not_speak_http(command):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"\0\0\0\4\0\0\0\0\0")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as server:
        outcome = await command("objects", "--operator", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert (outcome.status, "the server on this port does not speak HTTP" in outcome.err) == (1, True)


@pytest.fixture
async def demo() -> AsyncIterator[ScriptedDaemon]:
    """A fake daemon with the socket of a demo, in its own temporary directory."""
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        directory = Path(name) / "milo-demo-a"
        directory.mkdir(mode=0o700)
        scripted = ScriptedDaemon(directory / "discovery.sock")
        await scripted.start()
        yield scripted
        await scripted.stop()


def temporary_directory(demo: ScriptedDaemon) -> Path:
    return Path(demo.address.removeprefix("unix://")).parents[1]


async def test_commands_without_an_address_use_the_running_demo(command, demo: ScriptedDaemon, tmp_path: Path):
    demo.answers["ListClusters"] = [FLEET]
    there = temporary_directory(demo)
    ended = there / "milo-demo-b" / "discovery.sock"
    ended.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(ended))
    os.utime(ended, (2**31, 2**31))
    outcome = await command("list", "-o", "name", MILO_DISCOVERY_ADDRESS="", TMPDIR=str(there))
    assert (outcome.status, outcome.out) == (0, "alpha\nbeta\n")
    assert f"using the demo at {demo.address}" in outcome.err
    program = tmp_path / "my_operator.py"
    program.write_text("import os\nprint(os.environ['MILO_DISCOVERY_ADDRESS'])")
    async with running("run", "--no-restart", str(program), address="", TMPDIR=str(there)) as process:
        out, _ = await process.communicate()
        assert out.decode() == f"{demo.address}\n"


@pytest.fixture
def suspended_demo(demo: ScriptedDaemon) -> Iterator[Path]:
    """A newer demo that accepts connections, and does not answer."""
    directory = temporary_directory(demo) / "milo-demo-c"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "discovery.sock"))
        listener.listen()
        os.utime(directory / "discovery.sock", (2**31, 2**31))
        yield directory / "discovery.sock"


async def test_demo_that_does_not_answer_is_used_only_if_no_other_demo_runs(
    command, demo: ScriptedDaemon, suspended_demo: Path
):
    demo.answers["ListClusters"] = [FLEET]
    variables = {"MILO_DISCOVERY_ADDRESS": "", "TMPDIR": str(temporary_directory(demo))}
    outcome = await command("list", "-o", "name", **variables)
    assert (outcome.status, outcome.out) == (0, "alpha\nbeta\n")
    await demo.stop()
    outcome = await command("list", "--timeout", "50ms", **variables)
    assert (outcome.status, f"using the demo at unix://{suspended_demo}" in outcome.err) == (6, True)


def test_demo_that_ends_while_the_cli_looks_for_demos_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def ended(found: Path) -> os.stat_result:
        status = lstat(found)
        if found.name == "discovery.sock":
            found.unlink()
        return status

    lstat = Path.lstat
    (tmp_path / "milo-demo-a").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener, chdir(tmp_path):  # the full path may be too long for a socket
        listener.bind("milo-demo-a/discovery.sock")
        monkeypatch.setattr(tempfile, "tempdir", ".")
        monkeypatch.setattr(Path, "lstat", ended)
        assert demo_address() is None


async def test_credential_command_without_an_address_suggests_the_running_demo(command, demo: ScriptedDaemon):
    there = str(temporary_directory(demo))
    outcome = await command("credential", "alpha", MILO_DISCOVERY_ADDRESS="", TMPDIR=there)
    assert outcome.status == 5
    assert outcome.err.endswith(f"; the address of your demo is {demo.address})\n")
    await demo.stop()
    outcome = await command("credential", "alpha", MILO_DISCOVERY_ADDRESS="", TMPDIR=there)
    assert outcome.err.endswith(", or start ./dev demo)\n")


@pytest.mark.parametrize("plant", ["writable directory", "linked directory", "linked socket", "other user"])
async def test_demo_socket_that_another_user_can_replace_is_not_used(command, demo: ScriptedDaemon, plant: str):
    there = temporary_directory(demo)
    planted = there / "milo-demo-a"
    match plant:
        case "writable directory":
            planted.chmod(0o777)
        case "linked directory":
            planted = planted.rename(there / "elsewhere")
            (there / "milo-demo-b").symlink_to(planted)
        case "linked socket":
            planted = planted.rename(there / "elsewhere")
            (there / "milo-demo-b").mkdir(mode=0o700)
            (there / "milo-demo-b" / "discovery.sock").symlink_to(planted / "discovery.sock")
        case _:
            if os.getuid() != 0:
                pytest.skip("needs root")
            os.chown(planted, 65534, -1)
    outcome = await command("list", MILO_DISCOVERY_ADDRESS="", TMPDIR=str(there))
    assert outcome.status == 5
    assert "or start ./dev demo" in outcome.err


async def test_sync_without_an_address_does_not_use_a_demo(command, demo: ScriptedDaemon, tmp_path: Path):
    there = temporary_directory(demo)
    outcome = await command(
        "sync",
        "--dir",
        str(tmp_path / "kubeconfigs"),
        "--once",
        "--timeout",
        "1s",
        MILO_DISCOVERY_ADDRESS="",
        TMPDIR=str(there),
    )
    assert "/run/milo-discovery/discovery.sock" in outcome.err
