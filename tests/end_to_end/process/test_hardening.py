"""What other processes can read of the daemon, and which environment variables it uses."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from milo_discoveryd import process_hardening
from tests.end_to_end.process.conftest import Workspace
from tests.support.certificates import Authority

AS_ANOTHER = """
import asyncio, os, ssl, sys
import grpc
from milo_discoveryd import process_hardening
from milo_kube.tls_identity import as_file
from milo_discoveryd.server.connections.inner_socket import InnerSocket

os.setgroups([])
os.setgid(65532)
os.setuid(65532)
process_hardening.protect_memory_and_new_files()
with as_file(sys.stdin.buffer.read()) as path:
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)

async def connect():
    backstage, server = InnerSocket(), grpc.aio.server()
    backstage.bind(server)
    await server.start()
    _, connected = await backstage.connect()
    connected.close()
    backstage.close()
    await server.stop(None)

asyncio.run(connect())
assert len(os.listdir("/proc/self/fd")) > 2
us = f"/proc/{os.getpid()}"
if os.fork() == 0:
    for name in ("mem", "environ", "maps", "fd/0"):
        try:
            open(f"{us}/{name}", "rb").close()
        except PermissionError:
            continue
        os._exit(1)
    os._exit(0)
assert os.wait()[1] == 0, "another process of the same user could read this one"
print("closed")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_process_memory_is_unreadable_for_other_processes_of_its_user() -> None:
    """The key has to be loaded into a TLS context, which reads files only, without a file on a disk."""
    pair = Authority().server()
    run = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER], input=pair.certificate + pair.key, capture_output=True, check=False
    )
    assert (run.stdout, run.stderr) == (b"closed\n", b"")


async def test_killed_daemon_leaves_no_core_dump_and_ignores_variables_that_reveal_secrets(
    workspace: Workspace,
) -> None:
    keys = workspace.directory / "keys"
    misleading = {"SSLKEYLOGFILE": str(keys), "GRPC_TRACE": "all", "GRPC_VERBOSITY": "debug", "PYTHONINSPECT": "1"}
    async with workspace.daemon(environ=misleading) as daemon:
        await daemon.start()
        await daemon.wait_for_output('"started"')
        [warned] = daemon.events("environment ignored")
        assert set(misleading) <= set(warned["variables"])
        limits = Path(f"/proc/{daemon.pid}/limits").read_text()
        daemon.signal(signal.SIGABRT)
        assert await daemon.ended() == -signal.SIGABRT
    assert "Max core file size        0                    0" in limits
    assert not keys.exists()
    assert ".cc:" not in daemon.output  # the source locations in gRPC's trace
    assert [path.name for path in workspace.directory.iterdir() if path.name.startswith("core")] == []


async def test_segmentation_fault_writes_the_python_stack(workspace: Workspace) -> None:
    async with workspace.daemon(environ={}) as daemon:
        await daemon.start()
        daemon.signal(signal.SIGSEGV)
        assert await daemon.ended() == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in daemon.output
    assert "milo_discoveryd/cli.py" in daemon.output


def test_unsafe_variables_that_are_empty_or_usual_in_images_are_removed_but_not_reported() -> None:
    environ = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": "/x",
        "SSLKEYLOGFILE": "",
        "A": "b",
    }
    assert process_hardening.remove_unsafe_variables(environ) == ["PYTHONPATH"]
    assert environ == {"A": "b"}


def test_file_descriptor_limit_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        process_hardening.raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
