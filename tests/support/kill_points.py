"""Kills a process at every line of a file, without failpoints in the code.

A process runs a function in a sequence of children. Each child is killed one line later than the previous one, until a
child completes. After each child, the test checks the state that it left.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def deaths(script: str, *arguments: object) -> Iterator[int]:
    """Run a script that calls `die_at_every_line`; each iteration is one child."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, _ in enumerate(process.stdout, 1):
            yield number
            process.stdin.write(b"\n")
            process.stdin.flush()
    assert process.returncode == 0


def die_at_every_line(path: str | None, act: Callable[[], object]) -> None:
    """Run `act` in children, each killed at a later line of the file at `path`; called by the script."""
    line = 1
    while _dies(path, act, line):
        os.write(sys.stdout.fileno(), b"died\n")
        sys.stdin.readline()
        line += 1


def _dies(path: str | None, act: Callable[[], object], line: int) -> bool:
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != path:
            return None
        left -= event == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    act()
    os._exit(0)
