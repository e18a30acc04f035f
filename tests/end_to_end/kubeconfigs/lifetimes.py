"""`./dev python -m tests.end_to_end.kubeconfigs.lifetimes [--life SECONDS] [--lifetimes N]`

Runs operators for several lifetimes of their tokens, against the sandbox: two in Python and, if Go is available,
one in Go, which uses a kubeconfig without a secret. Each writes objects and receives them in one watch. The exit
status is 0 if no request was refused, no cluster disengaged and no watch interrupted.
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
from tests.end_to_end.kubeconfigs.reading import go_reader
from tests.end_to_end.kubeconfigs.workspace import open_workspace


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev python -m tests.end_to_end.kubeconfigs.lifetimes")
    parser.add_argument("--life", type=float, default=20.0, metavar="SECONDS", help="lifetime of a token")
    parser.add_argument("--lifetimes", type=int, default=10, metavar="N", help="duration, in token lifetimes")
    asked = parser.parse_args(argv)
    return asyncio.run(_run(asked.life, asked.life * asked.lifetimes))


async def _run(life_s: float, for_s: float) -> int:
    in_go = None
    if shutil.which("go"):
        in_go = await asyncio.to_thread(go_reader)
    else:
        click.echo("lifetimes: there is no go command here, so the operators are all in Python", err=True)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="milo-")))
        workspace = await stack.enter_async_context(open_workspace(directory, token_life=life_s))
        ends_at = time.time() + for_s
        click.echo(f"lifetimes: running operators for {for_s:g} s, with tokens that expire after {life_s:g} s")
        fed, asking = Operator("fed", ends_at), Operator("asking", ends_at)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fed.work(workspace, fed=True))
            tasks.create_task(asking.work(workspace, fed=False))
            other = tasks.create_task(operate_in_go(workspace, in_go, ends_at=ends_at)) if in_go else None
    for operator in (fed, asking):
        operator.require_undisturbed()
        written, tokens = len(operator.written), len(operator.tokens)
        click.echo(f"{operator.name}: wrote and received {written} ConfigMaps, with {tokens} tokens")
    if other is not None:
        click.echo(f"in Go: wrote and received {other.result()} ConfigMaps")
    click.echo(f"requests rejected with 401: {len(workspace.refused)}")
    return 1 if workspace.refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
