"""The sandbox as a process whose objects outlive it, as those of an API server do in etcd.

Commands are lines of JSON on its standard input: the name of a method of the sandbox or of its faults, with
arguments. Each is answered by an empty line once it is done. The process exits when its standard input closes.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path
from random import sample
from typing import Any

import msgspec

from milo_sandbox import Sandbox
from milo_sandbox.api import Features
from milo_sandbox.kubeconfigs import write_secret
from milo_sandbox.records import SandboxRecord
from milo_sandbox.resources import PROJECTS
from milo_sandbox.server import ServerAddress
from milo_sandbox.store import Store, StoreBackup
from milo_sandbox.watch import Pace

AUTHORITY = "ca.pem"
TOKEN = "own.token"
READY = "ready"

DATA = "objects"
_BOOKMARKS_EVERY_S = 5.0
_TOKENS_LIVE_S = 60.0
_GRACE_S = 4.0
"""Time after SIGTERM in which open watches are served; a real server takes a minute."""


class _Kept(msgspec.Struct):
    version: int
    projects: list[SandboxRecord]


def remember(store: Store, path: Path) -> None:
    """Restore the file, and write each change to it before any client is notified."""

    def write() -> None:
        kept = _Kept(store.version, list(store[PROJECTS]))
        beside = path.with_name(f"{path.name}.new")
        beside.write_bytes(msgspec.msgpack.encode(kept))
        beside.replace(path)

    if path.exists():
        kept = msgspec.msgpack.decode(path.read_bytes(), type=_Kept)
        store.restore(StoreBackup(kept.version, {PROJECTS: kept.projects}))
    store.listen(write)


async def serve(directory: Path, port: int) -> None:
    sandbox = Sandbox(
        address=ServerAddress(port=port),
        features=Features(pace=Pace(bookmark_interval=_BOOKMARKS_EVERY_S)),
        token_life=_TOKENS_LIVE_S,
    )
    remember(sandbox.store, directory / DATA)
    # The CA is new each time, so clients have to read the kubeconfig again.
    write_secret(directory / AUTHORITY, sandbox.ca_pem.decode())
    loop = asyncio.get_running_loop()
    async with sandbox:
        sandbox.write_kubeconfig(directory / TOKEN.removesuffix(".token"))
        obeying = loop.create_task(_run_commands(sandbox), name="run commands")
        loop.add_signal_handler(signal.SIGTERM, obeying.cancel)
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        await asyncio.wait((obeying,))
        if obeying.cancelled():
            await sandbox.terminate(grace=_GRACE_S)


async def _run_commands(sandbox: Sandbox) -> None:
    orders = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        order, given = json.loads(line)
        _do(sandbox, order, given)
        sys.stdout.write("\n")
        sys.stdout.flush()


def _do(sandbox: Sandbox, order: str, given: dict[str, Any]) -> None:
    match order:
        case "report_recreated":
            names = [record.name for record in sandbox.store[PROJECTS]]
            sandbox.report_recreated(*sample(names, min(given["count"], len(names))))
        case "delete_definition":
            sandbox.delete_definition(PROJECTS)
        case _:
            what = getattr(sandbox, order, None) or getattr(sandbox.faults, order)
            what(**given)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
