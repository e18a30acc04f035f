"""`python -m bench.milo_process KUBECONFIG PROJECTS`: the sandbox as a process, with many changes at once on request.

Over HTTP it takes writes one by one, as any API server does. A line on its standard input has it make many changes:
`FIRST COUNT SIZE MARK`, from which project on, how many, how many to a burst, and which mark each has then.
"""

import asyncio
import sys
from pathlib import Path

from bench import projects
from milo_discoveryd.sandbox import Sandbox
from milo_discoveryd.sandbox.resources import PROJECTS

_DAY_S = 86_400.0


async def serve(kubeconfig: Path, count: int) -> None:
    # Nothing that the bench does takes the history back further than its own bursts.
    async with Sandbox(token_life=_DAY_S, history_limit=50_000) as sandbox:
        sandbox.store.load(PROJECTS, [{"metadata": {"name": projects.name(index)}} for index in range(count)])
        plant(sandbox, range(count), "")
        sandbox.write_kubeconfig(kubeconfig)
        say("ready")
        reader = await _standard_input()
        while line := await reader.readline():
            first, total, size, mark = line.decode().split()
            await burst(sandbox, int(first), int(total), int(size), mark)
            say("done")


async def burst(sandbox: Sandbox, first: int, total: int, size: int, mark: str) -> None:
    for begin in range(first, first + total, size):
        plant(sandbox, range(begin, min(begin + size, first + total)), mark)
        await asyncio.sleep(0)  # the watches send it


def plant(sandbox: Sandbox, indices: range, mark: str) -> None:
    """Make them what they would be on a real server, which writes more into an object than the sandbox does."""
    store = sandbox.store
    for index in indices:
        name = projects.name(index)
        body = projects.body(index, uid=store.get(PROJECTS, name).uid, version=store.version + 1, mark=mark)
        store.plant(PROJECTS, name, body)


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
