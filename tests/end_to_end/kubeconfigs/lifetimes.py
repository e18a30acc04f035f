"""`./dev python -m tests.end_to_end.kubeconfigs.lifetimes [--life SECONDS] [--lifetimes N]`

Operators at work for so many lifetimes of their tokens, against the sandbox: two in Python, and where Go is one in Go,
with a kubeconfig that holds no secret. Each writes and sees what it wrote in one watch. Ends with 0 when none was
refused, disengaged or cut off.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import click

from tests.end_to_end.kubeconfigs.operators import Operator, operate_in_go
from tests.end_to_end.kubeconfigs.place import a_place
from tests.end_to_end.kubeconfigs.reading import go_reader


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev python -m tests.end_to_end.kubeconfigs.lifetimes")
    parser.add_argument("--life", type=float, default=20.0, metavar="SECONDS", help="of a token")
    parser.add_argument("--lifetimes", type=int, default=10, metavar="N")
    asked = parser.parse_args(argv)
    return asyncio.run(_run(asked.life, asked.life * asked.lifetimes))


async def _run(life_s: float, for_s: float) -> int:
    in_go = None
    if shutil.which("go"):
        in_go = await asyncio.to_thread(go_reader)
    else:
        click.echo("lifetimes: there is no go command here, so the operators are all in Python", err=True)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="milo-")))
        place = await stack.enter_async_context(a_place(folder, token_life=life_s))
        ends_at = time.time() + for_s
        click.echo(f"lifetimes: at work for {for_s:g} s, with tokens that live for {life_s:g} s")
        fed, asking = Operator("fed", ends_at), Operator("asking", ends_at)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fed.work(place, fed=True))
            tasks.create_task(asking.work(place, fed=False))
            other = tasks.create_task(operate_in_go(place, in_go, ends_at=ends_at)) if in_go else None
    for operator in (fed, asking):
        operator.require_undisturbed()
        click.echo(f"{operator.name}: wrote and saw {len(operator.written)}, with {len(operator.tokens)} tokens")
    if other is not None:
        click.echo(f"in Go: wrote and saw {other.result()}")
    click.echo(f"requests refused for their token: {len(place.refused)}")
    return 1 if place.refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
