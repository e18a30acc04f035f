"""`./dev soak --minutes N [--real] [--seed S] [--report FILE]`: faults for so long, and what came of them.

Ends with 0 where every history was what it should be and everybody recovered, with 1 where not, and with 3 where real
servers were asked for and there is no go command. The report is markdown; beside it is one for programs, in JSON.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from tests.end_to_end.real.builds import GoMissingError, UnobtainableError
from tests.end_to_end.real.builds import say_to_stderr as say_of_builds
from tests.end_to_end.real.programs import programs
from tests.end_to_end.soak.report import Report
from tests.end_to_end.soak.servers import RealServer, SandboxServer, Server
from tests.end_to_end.soak.soak import Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--real", action="store_true", help="against a real API server (needs Go)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--report", type=Path, help="a file for the report; printed in any case")
    asked = parser.parse_args()
    try:
        report = asyncio.run(_soak(asked.minutes, asked.seed, is_real=asked.real))
    except GoMissingError as error:
        _say(str(error))
        return 3
    except UnobtainableError as error:
        _say(str(error))
        return 1
    click.echo(report.markdown())
    if asked.report is not None:
        asked.report.write_text(report.markdown())
        asked.report.with_suffix(".json").write_text(json.dumps(report.json(), indent=1))
    return 1 if report.failures else 0


def _say(words: str) -> None:
    click.echo(f"dev soak: {words}", err=True)


async def _soak(minutes: float, seed: int, *, is_real: bool) -> Report:
    with TemporaryDirectory(prefix="milo-soak-") as name:
        folder = Path(name)
        server: Server = SandboxServer(folder)
        if is_real:
            server = RealServer(await asyncio.to_thread(programs, say_of_builds), folder)
        return await Soak(server, folder, seed, _say).run(minutes)


if __name__ == "__main__":
    sys.exit(main())
