"""Credentials: the number of mints that renew those of a whole fleet, and the latency of issuing a cached one.

The fleet's clusters share one identity, as with a service account. Its first credential expires within a minute, the
next one after an hour, so the mints until every cluster has the next one are those of the renewal.
"""

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles

import msgspec

from bench import projects
from bench.setting import Samples, Setting
from bench.subscribers import synced
from milo_discovery import DiscoveryClient
from milo_discovery.v1 import discovery_pb2 as pb

SOURCE = """kubeconfigs:
  issuers:
    - {{name: bench, type: exec, command: {python}, args: [-m, bench.measures.rotation, {minted}, "{life_s}"]}}
"""
_LONG_S = 3600.0
_WITHIN_LIVES = 10


async def measure(setting: Setting) -> Samples:
    scale = setting.scale
    minted, config = setting.directory / "minted", setting.directory / "rotation.yaml"
    minted.write_text("")
    config.write_text(SOURCE.format(python=sys.executable, minted=minted, life_s=scale.token_life_s))
    async with (
        setting.daemon(scale.clusters, config=config) as (_, daemon),
        synced(daemon.address, 1, with_kubeconfigs=True) as (subscriber,),
    ):
        renewed = Renewed()
        subscriber.on_batch = renewed.note
        async with asyncio.timeout(scale.token_life_s * _WITHIN_LIVES):
            while len(renewed.names) < scale.clusters:
                await subscriber.read()
        mints = minted.read_text().count("\n")
        took_ms = await _issued(daemon.address, scale.issues)
    return {
        "rotation.mints": [mints - 1.0],
        "rotation.clusters": [float(len(renewed.names))],
        "issue.p50_ms": [median(took_ms)],
        "issue.p99_ms": [quantiles(took_ms, n=100)[98]],
    }


class Renewed:
    """The clusters whose rotated kubeconfig has arrived."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._after = time.time() + _LONG_S / 2

    def note(self, data: bytes) -> None:
        for event in pb.WatchClustersResponse.FromString(data).events:
            if event.HasField("kubeconfig") and event.kubeconfig.expires_at.seconds > self._after:
                self.names.add(event.cluster.name)


async def _issued(address: str, times: int) -> list[float]:
    """Return the latencies in ms of consecutive calls of IssueKubeconfig, as `milo-discovery credential` makes them."""
    took_ms: list[float] = []
    async with DiscoveryClient(address) as client:
        for number in range(times + 1):
            began = time.perf_counter()
            await client.issue_kubeconfig(projects.name(number % 10))
            took_ms.append((time.perf_counter() - began) * 1000)
    return took_ms[1:]  # the first call opens the connection


def mint(minted: Path, first_life_s: float) -> None:
    """Print a credential, as an exec plugin does."""
    is_first = not minted.read_text()
    with minted.open("a") as file:
        file.write("minted\n")
    ends = datetime.now(UTC) + timedelta(seconds=first_life_s if is_first else _LONG_S)
    status = {"token": f"token-{time.time_ns()}", "expirationTimestamp": ends.isoformat(timespec="seconds")}
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    sys.stdout.write(msgspec.json.encode(answer).decode())


if __name__ == "__main__":
    mint(Path(sys.argv[1]), float(sys.argv[2]))
