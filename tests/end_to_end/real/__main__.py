"""`./dev real up|down|status`: control the real servers.

`./dev real peer` builds the Go program that embeds Milo's own provider, and prints its path. `./dev demo --real` is
`demo` here. `./dev real parity` runs scenarios with that program beside the daemon, and writes the page on parity.
`./dev real record` renews the recordings of the real servers' responses (tests/integration/sandbox_conformance).

Exit status: 0 for success (`status`: all servers run), 1 for a failure, 3 if there is no go command.
"""

import argparse
import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.end_to_end.real import parity
from tests.end_to_end.real.builds import GoMissingError, UnobtainableError, say_to_stderr
from tests.end_to_end.real.demo import demo
from tests.end_to_end.real.process import ProcessError
from tests.end_to_end.real.programs import peer, programs
from tests.end_to_end.real.session import Session
from tests.end_to_end.real.whole_milo import a_whole_milo
from tests.end_to_end.scenarios import reading
from tests.end_to_end.scenarios.__main__ import OWN
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import MODES, Scenario
from tests.integration.sandbox_conformance import transcripts
from tests.integration.sandbox_conformance.conversations import CONVERSATIONS
from tests.integration.sandbox_conformance.lives import LIVES
from tests.integration.sandbox_conformance.lives import record as record_life
from tests.integration.sandbox_conformance.recording import record

_FAILED = 1
_NO_GO = 3


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev real", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=["up", "down", "status", "peer", "demo", "parity", "record"])
    asked, rest = parser.parse_known_args(argv)
    if rest and asked.verb != "demo":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    session = Session.of_the_user()
    try:
        match asked.verb:
            case "up":
                asyncio.run(session.up(say_to_stderr))
                return _status(session)
            case "down":
                asyncio.run(session.down(say_to_stderr))
                return 0
            case "peer":
                click.echo(peer(say_to_stderr))
                return 0
            case "demo":
                return asyncio.run(demo(programs(say_to_stderr), rest))
            case "parity":
                return asyncio.run(_parity())
            case "record":
                asyncio.run(_record())
                return 0
            case _:
                return _status(session)
    except GoMissingError as error:
        say_to_stderr(str(error))
        return _NO_GO
    except (UnobtainableError, ProcessError) as error:
        say_to_stderr(str(error))
        return _FAILED


async def _parity() -> int:
    found = await asyncio.to_thread(programs, say_to_stderr)
    binary = await asyncio.to_thread(peer, say_to_stderr)
    scenarios = [scenario for file in OWN for scenario in reading.load(file) if isinstance(scenario, Scenario)]
    comparisons = []
    async with aclosing(parity.compare(scenarios, found, binary)) as results:
        async for result in results:
            click.echo(f"{result.verdict:20} {result.scenario} [{result.where}]")
            comparisons.append(result)
    parity.PAGE.write_text(parity.written(parity.PAGE.read_text(), comparisons, found))
    return _FAILED if not all(comparison.is_explained for comparison in comparisons) else 0


async def _record() -> None:
    found = await asyncio.to_thread(programs, say_to_stderr)
    with TemporaryDirectory(prefix="milo-record-") as name:
        directory = Path(name)
        async with RealServers(found, directory) as servers:
            for mode in MODES:
                recorded = {
                    conversation: await record(conversation, mode, servers, directory) for conversation in CONVERSATIONS
                }
                say_to_stderr(f"{mode}: {len(recorded)} conversations in {transcripts.write(mode, recorded)}")
        if found.controllers:
            async with a_whole_milo(found, directory / "whole-milo") as milo:
                lives = {life: await record_life(life, milo.places) for life in LIVES}
            say_to_stderr(f"{len(lives)} project lifecycles in {transcripts.write('lives', lives)}")


def _status(session: Session) -> int:
    servers = session.servers()
    if not servers:
        click.echo("no server is running: start them with ./dev real up")
        return _FAILED
    for server in servers:
        click.echo(f"{server.mode}: {server.title}")
        for process in server.processes:
            click.echo(
                f"  {'runs' if process.running() else 'ENDED'}: {process.name} (pid {process.pid}, log {process.log})"
            )
        click.echo(f"  export KUBECONFIG={server.kubeconfig}")
    for missing in session.missing():
        click.echo(f"replaced: {missing}")
    return 0 if all(process.running() for server in servers for process in server.processes) else _FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
