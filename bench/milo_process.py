"""`python -m bench.milo_process KUBECONFIG PROJECTS`: the sandbox as a process that makes many changes on request.

Over HTTP it takes single writes like any API server. A line on standard input makes it apply many changes, and print
when it is done:

- `burst FIRST COUNT SIZE MARK`: first project, number of projects, size of a burst, and the label value to set;
- `fill COUNT`: ConfigMaps in each project's control plane;
- `churn PER_S SECONDS`: changes at an even rate; each project's label value is the time of its change;
- `relist MARK`: compacts the history, and sets the label value of one project;
- `requests`: prints the number of requests so far.
"""

import asyncio
import sys
import time
from pathlib import Path

from bench import projects
from bench.process import standard_input
from milo_sandbox import Sandbox
from milo_sandbox.resources import CONFIG_MAPS, PROJECTS

_DAY_S = 86_400.0
_TICK_S = 0.01
_STRIDE = 7919
"""A prime: steps of this size visit every project once before any project twice."""


async def serve(kubeconfig: Path, count: int) -> None:
    # The history must cover only the benchmark's own bursts.
    async with Sandbox(token_life=_DAY_S, history_limit=50_000) as sandbox:
        sandbox.store.load(PROJECTS, [{"metadata": {"name": projects.name(index)}} for index in range(count)])
        plant(sandbox, range(count), "")
        sandbox.write_kubeconfig(kubeconfig)
        say("ready")
        reader = await standard_input()
        while line := await reader.readline():
            match line.decode().split():
                case ["burst", first, total, size, mark]:
                    await burst(sandbox, int(first), int(total), int(size), mark)
                case ["fill", each]:
                    fill(sandbox, count, int(each))
                case ["churn", per_s, seconds]:
                    await churn(sandbox, count, float(per_s), float(seconds))
                case ["relist", mark]:
                    sandbox.drop_watches()
                    plant(sandbox, [0], mark)
                    sandbox.compact()
                case ["requests"]:
                    say(str(sandbox.requests))
                    continue
                case unexpected:
                    raise ValueError(f"no such request: {unexpected}")
            say("done")


async def burst(sandbox: Sandbox, first: int, total: int, size: int, mark: str) -> None:
    for begin in range(first, first + total, size):
        plant(sandbox, range(begin, min(begin + size, first + total)), mark)
        await asyncio.sleep(0)  # the watches send the burst


def fill(sandbox: Sandbox, count: int, each: int) -> None:
    for index in range(count):
        store = sandbox.control_plane(projects.name(index))
        for number in range(each):
            store.create(CONFIG_MAPS, {"metadata": {"name": f"work-{number}"}, "data": {"a": "1"}}, namespace="default")


async def churn(sandbox: Sandbox, count: int, per_s: float, seconds: float) -> None:
    """Make changes: eight of ten set a label, one changes readiness, and one recreates the project."""
    began = time.perf_counter()
    made = 0
    not_ready: set[int] = set()
    while (passed_s := time.perf_counter() - began) < seconds:
        while made < passed_s * per_s:
            index = made * _STRIDE % count
            moment = f"{time.perf_counter():.6f}"
            match made % 10:
                case 8 if index not in not_ready:
                    not_ready.add(index)
                    plant(sandbox, [index], moment, is_ready=False)
                case 9:
                    not_ready.discard(index)
                    plant(sandbox, [index], moment, uid=f"replaced-{made}")
                case _:
                    not_ready.discard(index)
                    plant(sandbox, [index], moment)
            made += 1
        await asyncio.sleep(_TICK_S)
    plant(sandbox, sorted(not_ready), "")


def plant(
    sandbox: Sandbox, indices: "range | list[int]", mark: str, *, uid: str | None = None, is_ready: bool = True
) -> None:
    """Add the fields that a real server writes and the sandbox does not."""
    store = sandbox.store
    for index in indices:
        name = projects.name(index)
        body = projects.body(
            index, uid=uid or store.get(PROJECTS, name).uid, version=store.version + 1, mark=mark, is_ready=is_ready
        )
        store.plant(PROJECTS, name, body)


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
