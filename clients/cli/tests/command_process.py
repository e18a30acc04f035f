"""Helpers that run the command line as a process, and clusters for its tests."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from clients.python.tests.messages import cluster
from milo_discovery.v1 import discovery_pb2 as pb

COMMAND = str(Path(sys.executable).with_name("milo-discovery"))
# Long enough that its rounded output, in days and hours, does not change while the tests run.
AGO = timedelta(days=2, hours=5, minutes=30)


def ago(span: timedelta = AGO) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) - span)
    return stamp


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[list[str]]:
        """The words of each line of stdout."""
        return [line.split() for line in self.out.splitlines()]


@asynccontextmanager
async def running(*arguments: str, address: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MILO_DISCOVERY_ADDRESS": address, **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


ALPHA = cluster(
    "alpha",
    uid="u-1",
    endpoint="https://a",
    organization="acme",
    labels={"env": "prod", "b": "2"},
    engaged_at=ago(),
    incarnation="i",
)
BETA = cluster("beta", suspended=True, deletion_requested_at=ago(), connectivity=pb.Connectivity(state=3))
FLEET = pb.ListClustersResponse(clusters=[ALPHA, BETA], revision="7", total_size=2)
