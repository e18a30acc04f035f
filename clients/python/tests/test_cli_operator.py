"""The commands for authors of operators."""

from __future__ import annotations

import signal
from pathlib import Path

from .cli_process import running

PROGRAM = """\
import os, signal, sys
sys.stdout.write(f"VERSION {os.environ['MILO_DISCOVERY_ADDRESS']} {sys.argv[1:]}\\n")
sys.stdout.flush()
signal.sigwait([signal.SIGTERM])
print("ended", flush=True)
"""


async def test_run_restarts_the_operator_when_a_file_changes_and_ends_it_on_sigterm(tmp_path: Path):
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


async def test_run_waits_for_a_change_after_the_operator_failed(tmp_path: Path):
    program = tmp_path / "my_operator.py"
    program.write_text("raise SystemExit(3)")
    async with running("run", str(program), address="unix:///daemon.sock") as process:
        assert process.stderr is not None
        while b"ended with status 3" not in await process.stderr.readline():
            pass
        program.write_text("print('fixed', flush=True)")
        assert process.stdout is not None
        assert await process.stdout.readline() == b"fixed\n"


async def test_run_without_a_demo_says_how_to_start_one(tmp_path: Path):
    program = tmp_path / "my_operator.py"
    program.write_text("")
    async with running("run", str(program), address="", TMPDIR=str(tmp_path)) as process:
        _, err = await process.communicate()
        assert (process.returncode, b"start ./dev demo" in err) == (1, True)


async def test_objects_without_an_operator_says_which_address_was_tried():
    async with running("objects", "--operator", "127.0.0.1:1", address="unix:///daemon.sock") as process:
        _, err = await process.communicate()
        assert process.returncode == 1
        assert b"no operator answers on http://127.0.0.1:1/debug/objects" in err
