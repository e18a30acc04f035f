"""`./dev scenarios [FILE...] [-k NAME] [--mode MODE] [--real [--no-streaming-lists]]`

Exit status: 0 if all scenarios passed, 1 if one failed, 2 if a file is invalid or none was selected, 3 without
real servers.
"""

import argparse
import asyncio
import sys
import textwrap
from collections.abc import Collection
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.end_to_end.real.builds import GoMissingError, UnobtainableError, say_to_stderr
from tests.end_to_end.real.process import ProcessError
from tests.end_to_end.real.programs import programs
from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.running import chosen, line, run
from tests.end_to_end.scenarios.servers import RealServers, Sandboxes, Servers
from tests.end_to_end.scenarios.steps import MODES, Malformed, Mode, Scenario

_FAILED = 1
_NOTHING_TO_RUN = 2
_NO_SERVERS = 3

OWN = tuple(sorted(Path(__file__).parent.glob("*.yaml")))
"""The scenarios of this repository."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev scenarios", description="Run scenarios.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="by default, this repository's scenarios")
    parser.add_argument("-k", dest="name", default="", metavar="NAME", help="run scenarios whose name contains NAME")
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--real", action="store_true", help="run on real API servers (needs Go)")
    parser.add_argument("--no-streaming-lists", action="store_true", help="with --real: on servers without them")
    asked = parser.parse_args(argv)
    try:
        scenarios = [scenario for file in asked.files or OWN for scenario in reading.load(file)]
    except reading.FileError as error:
        click.echo(f"scenarios: {error}", err=True)
        return _NOTHING_TO_RUN
    runs = chosen(scenarios, name=asked.name, mode=asked.mode)
    if not runs:
        click.echo("scenarios: no scenario matches -k and --mode", err=True)
        return _NOTHING_TO_RUN
    try:
        return asyncio.run(_run(runs, real=asked.real, streaming_lists=() if asked.no_streaming_lists else MODES))
    except KeyboardInterrupt:
        return 130
    except (GoMissingError, UnobtainableError, ProcessError) as error:
        click.echo(f"scenarios: {error}", err=True)
        return _NO_SERVERS


async def _run(runs: list[tuple[Scenario | Malformed, Mode]], *, real: bool, streaming_lists: Collection[Mode]) -> int:
    passed = failed = 0
    async with AsyncExitStack() as stack:
        servers: Servers = Sandboxes()
        if real:
            found = await asyncio.to_thread(programs, say_to_stderr)
            for missing in found.missing:
                say_to_stderr(f"MISSING: {missing}")
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="milo-real-")))
            servers = await stack.enter_async_context(RealServers(found, directory, streaming_lists=streaming_lists))
        results = await stack.enter_async_context(aclosing(run(runs, servers)))
        async for result in results:
            click.echo(line(result))
            if result.failure is None:
                passed += 1
                continue
            failed += 1
            if result.daemon:
                click.echo(textwrap.indent(result.daemon, "      | "), err=True)
    click.echo(f"{passed} passed, {failed} failed")
    return _FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
