"""Wall-clock time of the commands, each run as a subprocess."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import projects
from bench.measures import rotation
from bench.setting import Samples, Setting
from bench.subscribers import synced

_CLUSTERS = 10
_RUNS_PER_ROUND = 3


async def startup(setting: Setting) -> Samples:
    times = setting.scale.rounds * _RUNS_PER_ROUND
    ours = await _ms(["milo-discoveryd", "--version"], times)
    python = await _ms([sys.executable, "-c", "pass"], times)
    return {
        "startup.import_ms": ours,
        "startup.python_ms": python,
        "startup.ratio_to_python": [median(ours) / median(python)],
    }


async def listing(setting: Setting) -> Samples:
    times = setting.scale.rounds * _RUNS_PER_ROUND
    config = setting.directory / "commands.yaml"
    config.write_text(rotation.SOURCE.format(python=sys.executable, minted=setting.directory / "minted", life_s=3600))
    (setting.directory / "minted").write_text("")
    async with setting.daemon(_CLUSTERS, config=config) as (_, daemon), synced(daemon.address, 1):
        at = ["--address", daemon.address]
        return {
            "cli.list_ms": await _ms(["milo-discovery", "list", *at], times),
            "cli.credential_ms": await _ms(["milo-discovery", "credential", "--cluster", projects.name(0), *at], times),
        }


async def _ms(command: Sequence[str], times: int) -> list[float]:
    return [await asyncio.to_thread(_timed_ms, command) for _ in range(times)]


def _timed_ms(command: Sequence[str]) -> float:
    # The commands of this environment, whether it is activated or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PATH": path})
    return (time.perf_counter() - began) * 1000
