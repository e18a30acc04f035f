"""The commands `run` and `objects`, for the authors of operators."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.client import HTTPException
from operator import itemgetter
from pathlib import Path
from typing import Any

import click

from milo_discovery.address import ADDRESS_VARIABLE, HOST_AND_PORT
from milo_discovery_cli.exit_status import CommandFailure, print_message
from milo_discovery_cli.local_daemon import local_address
from milo_discovery_cli.options import formatted

_POLL_S = 0.3
_END_LIMIT_S = 60.0
_TIMEOUT_S = 10.0
_DEFAULT_PAGES = "127.0.0.1:8080"


@click.command("run")
@click.argument("program", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--address", envvar=ADDRESS_VARIABLE, show_envvar=True, help="The daemon's address.")
@click.option("--no-restart", is_flag=True, help="Do not restart the operator when a file changes.")
def run(program: Path, arguments: tuple[str, ...], *, address: str | None, no_restart: bool) -> None:
    """Run the operator in FILE, and restart it when a Python file in its directory or below changes.

    Without an address, it runs against the daemon at the default address, or else your newest demo (`./dev demo`).
    """
    address = address or local_address()
    if address is None:
        raise CommandFailure(
            "no daemon listens on the default address, and you run no demo: start ./dev demo in another terminal, or "
            "pass --address"
        )
    environment = {**os.environ, ADDRESS_VARIABLE: address}
    print_message(f"running {program} against {address}")
    with _signaled() as ending:
        while True:
            before = _modification_times(program)
            process = subprocess.Popen([sys.executable, str(program), *arguments], env=environment)  # noqa: S603
            has_changed = False
            while process.poll() is None and not ending.is_set() and not has_changed:
                ending.wait(_POLL_S)
                has_changed = not no_restart and _modification_times(program) != before
            status = _terminate(process)
            if ending.is_set() or no_restart:
                sys.exit(status)
            if not has_changed:
                print_message(f"{program} exited with status {status}; it is restarted when a file changes")
                while _modification_times(program) == before:
                    if ending.wait(_POLL_S):
                        sys.exit(status)
            print_message(f"a Python file changed: restarting {program}")


def _modification_times(program: Path) -> Mapping[Path, int]:
    """Return the modification times of the Python files, except those in directories such as .venv and __pycache__."""
    found: dict[Path, int] = {}
    for directory, subdirectories, names in os.walk(program.parent):
        subdirectories[:] = [
            subdirectory for subdirectory in subdirectories if not subdirectory.startswith((".", "__"))
        ]
        for path in (Path(directory) / name for name in names if name.endswith(".py")):
            try:
                found[path] = path.stat().st_mtime_ns
            except FileNotFoundError:
                continue  # the file was removed after the directory was read
    return found


@contextmanager
def _signaled() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set."""
    ending = threading.Event()
    before = {number: signal.signal(number, lambda *_: ending.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(process: subprocess.Popen[bytes]) -> int:
    """Terminate the operator, by SIGKILL after a timeout, and return its exit status."""
    if process.poll() is None:
        process.terminate()
    deadline = time.monotonic() + _END_LIMIT_S
    while process.poll() is None:
        if time.monotonic() > deadline:
            print_message(f"the operator did not exit within {_END_LIMIT_S:g} s: killing it")
            process.kill()
        time.sleep(_POLL_S / 10)
    return process.returncode


@click.command("objects")
@click.option(
    "--operator",
    "pages",
    envvar="MILO_OPERATOR_LISTEN",
    default=_DEFAULT_PAGES,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="Address at which the operator serves its probes and metrics.",
)
@click.option("--cluster", help="Only objects of this cluster.")
@formatted("table", "json")
def objects(*, pages: str, cluster: str | None, form: str, headers: bool) -> None:
    """List the objects whose last reconcile failed, with the error, the attempts and the next try.

    Works with operators that `milo_controllers.main` runs.
    """
    match = HOST_AND_PORT.fullmatch(pages if pages.rpartition(":")[0] else f"127.0.0.1{pages}")
    if match is None or not 0 < int(match["port"]) <= 65535:
        raise click.UsageError(f"--operator {pages!r} is not HOST:PORT, such as {_DEFAULT_PAGES}")
    found = [entry for entry in _page(match[0], "/debug/objects") if cluster in (None, entry["cluster"])]
    if form == "json":
        click.echo(json.dumps(found, indent=2))
        return
    from milo_discovery_cli.text_output import age, table  # noqa: PLC0415  (loads the model)

    now = datetime.now(UTC)
    rows = [("CONTROLLER", "CLUSTER", "OBJECT", "ATTEMPTS", "FAILING FOR", "NEXT TRY", "ERROR")] if headers else []
    for entry in sorted(found, key=itemgetter("since")):
        place = f"{entry['namespace']}/{entry['name']}" if entry["namespace"] else entry["name"]
        due = entry["next_try"]
        next_try = "when it changes" if due is None else f"in {age(now, datetime.fromisoformat(due))}"
        since = age(datetime.fromisoformat(entry["since"]), now)
        rows.append(
            (entry["controller"], entry["cluster"], place, str(entry["attempts"]), since, next_try, entry["error"])
        )
    for line in table(rows) if rows else ():
        click.echo(line)


def _page(pages: str, path: str) -> list[dict[str, Any]]:
    url = f"http://{pages}{path}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as response:
            found: list[dict[str, Any]] = json.load(response)
    except (OSError, ValueError, HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CommandFailure(
            f"cannot read {url}: {_in_words(cause)}; set --operator to the operator's HOST:PORT"
        ) from error
    return found


def _in_words(cause: BaseException | str) -> str:
    match cause:
        case OSError(strerror=str(words)):
            return words
        case UnicodeError():
            return "the host is not a valid name"
        case HTTPException():
            return "the server on this port does not speak HTTP"
        case _:
            return str(cause)
