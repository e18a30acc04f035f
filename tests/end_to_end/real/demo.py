"""`./dev demo --real`: the demo on a real API server, with scripted changes over HTTP."""

import asyncio
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.servers import MiloApi, RealApi
from tests.end_to_end.real.watching import create_ready, delete, label, set_ready

_AT_FIRST = 8
_PAUSE_S = 0.7


async def demo(found: Programs, arguments: Sequence[str]) -> int:
    """Run the demo with its own arguments; return its exit status."""
    with TemporaryDirectory(prefix="milo-demo-real-") as name:
        server = MiloApi(found, Path(name), proxied=False)
        try:
            await server.start()
            life = asyncio.create_task(_live(server), name="life")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "milo_discoveryd", "demo", "--kubeconfig", str(server.kubeconfig), *arguments
            )
            ending = asyncio.create_task(process.wait(), name="demo")
            await asyncio.wait((life, ending), return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                process.terminate()
            status = await ending
            life.cancel()
            await asyncio.wait((life,))
            if not life.cancelled():
                life.result()
            return status
        finally:
            await server.close()


async def _live(server: RealApi) -> None:
    """Change projects continuously: create, update, break and delete them."""
    random = Random(1)
    names = (f"project-{number}" for number in count(1))
    projects = [next(names) for _ in range(_AT_FIRST)]
    await create_ready(server, *projects)
    while True:
        await asyncio.sleep(_PAUSE_S)
        name = random.choice(projects)
        match random.randrange(4):
            case 0:
                projects.append(next(names))
                await create_ready(server, projects[-1])
            case 1:
                await label(server, name, tier=random.choice(("gold", "silver", "bronze")))
            case 2:
                await set_ready(server, name, False)
                await asyncio.sleep(_PAUSE_S)
                await set_ready(server, name, True)
            case _ if len(projects) > 2:
                projects.remove(name)
                await delete(server, name)
