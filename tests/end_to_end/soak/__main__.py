"""`./dev soak --minutes N [--state DIRECTORY] [--real] [--seed S] [--report FILE]`: faults for a time, and a report.

`./dev soak --storms N [--seconds S] [--at-once M]`: storms, each with processes of its own. Every second one has a
state directory.

With `--state` a soak runs in pieces: each begins with the objects and the daemons' state files that the previous
one left in the directory, and the report covers all of them. Ctrl-C ends a piece after the current fault; the piece
counts.

Exit status: 0 if every history was correct and every subscriber recovered, 1 if not, 3 if real servers were
requested and there is no go command. The report is markdown; without --storms, one in JSON is
beside it.
"""

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.end_to_end.real.builds import GoMissingError, UnobtainableError
from tests.end_to_end.real.builds import say_to_stderr as say_of_builds
from tests.end_to_end.real.programs import programs
from tests.end_to_end.soak.report import Report, merged
from tests.end_to_end.soak.saved_state import SavedState
from tests.end_to_end.soak.servers import RealServer, SandboxServer, Server
from tests.end_to_end.soak.soak import Soak
from tests.end_to_end.soak.storm import Storm
from tests.end_to_end.soak.storm_report import StormReport, markdown


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--real", action="store_true", help="run on a real API server (needs Go)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--report", type=Path, help="file to write the report to; it is also printed")
    parser.add_argument(
        "--state", type=Path, metavar="DIRECTORY", help="continue the soak in this directory, or begin one there"
    )
    parser.add_argument("--storms", type=int, metavar="N", help="run N storms of overlapping faults and kills instead")
    parser.add_argument("--seconds", type=float, default=100.0, help="duration of each storm in seconds")
    parser.add_argument("--at-once", type=int, default=1, metavar="M", help="number of concurrent storms")
    asked = parser.parse_args()
    if asked.storms is not None:
        if asked.real or asked.state is not None:
            parser.error("--storms excludes --real and --state: it needs the sandbox, and keeps no state")
        return asyncio.run(_storms(asked.storms, asked.seconds, asked.seed, asked.at_once, asked.report))
    saved = None if asked.state is None else SavedState(asked.state)
    if saved is not None and asked.real:
        parser.error("--state excludes --real: only the sandbox keeps its objects between pieces")
    earlier = [] if saved is None else saved.reports()
    seed = earlier[0].seed if earlier else asked.seed
    try:
        report = asyncio.run(_soak(asked.minutes, seed, len(earlier), saved, is_real=asked.real))
    except GoMissingError as error:
        _say(str(error))
        return 3
    except UnobtainableError as error:
        _say(str(error))
        return 1
    if saved is not None:
        saved.add(report)
        report = merged([*earlier, report])
    click.echo(report.markdown())
    if asked.report is not None:
        asked.report.write_text(report.markdown())
        asked.report.with_suffix(".json").write_bytes(report.json())
    return 1 if report.failures else 0


async def _storms(count: int, seconds: float, seed: int, at_once: int, file: Path | None) -> int:
    limit = asyncio.Semaphore(at_once)

    async def storm(number: int) -> StormReport:
        async with limit:
            with TemporaryDirectory(prefix="milo-storm-") as name:
                found = await Storm(Path(name), f"{seed}-{number}", keeps_state=number % 2 == 0).run(seconds)
        _say(str(found))
        return found

    reports = await asyncio.gather(*(storm(number) for number in range(count)))
    text = markdown(reports, seconds)
    click.echo(text)
    if file is not None:
        file.write_text(text)
    return int(any(report.failures for report in reports))


def _say(words: str) -> None:
    click.echo(f"dev soak: {words}", err=True)


async def _soak(minutes: float, seed: int, piece: int, saved: SavedState | None, *, is_real: bool) -> Report:
    with TemporaryDirectory(prefix="milo-soak-") as name:
        directory = Path(name)
        server: Server = SandboxServer(directory)
        if is_real:
            server = RealServer(await asyncio.to_thread(programs, say_of_builds), directory)
        ports = None if saved is None else saved.restore(directory)
        soak = Soak(server, directory, seed, _say, ports, piece=piece)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, soak.end)
        return await soak.run(minutes, saved)


if __name__ == "__main__":
    sys.exit(main())
