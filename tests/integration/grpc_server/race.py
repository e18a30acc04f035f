"""`./dev python -m tests.integration.grpc_server.race [--rounds N] [--seed N]`

Disengagements race with requests for kubeconfigs in random schedules. No kubeconfig may be issued after a
disengagement.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from pathlib import Path
from random import Random

import click

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.credentials.issuers.issuer import Scope
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.kubeconfigs.kubeconfigs import IssuerAssignment
from milo_discoveryd.logger import NAME
from milo_discoveryd.server.calls.grpc_errors import CallError
from tests.integration.grpc_server.conftest import Harness, a_harness, not_ready, ready
from tests.unit.kubeconfigs.backend import Backend

_ASKING = 3


class Race:
    """Rounds in which a cluster is engaged, requested and disengaged; equal seeds give equal schedules."""

    def __init__(self, harness: Harness, backend: Backend, chance: Random) -> None:
        self._harness = harness
        self._backend = backend
        self._chance = chance
        self.handed = 0

    async def run(self, rounds: int) -> None:
        self._harness.listed()
        for number in range(rounds):
            uid = f"u{number // 2}"  # first the same object again, then another one
            self._harness.seen(ready("alpha", uid=uid, version=str(2 * number + 1)))
            asking = [asyncio.create_task(self._ask()) for _ in range(_ASKING)]
            await self._some_steps(12)
            self._harness.seen(not_ready("alpha", uid=uid, version=str(2 * number + 2)))
            await asyncio.gather(*asking)

    async def _ask(self) -> None:
        await self._some_steps(8)
        request = pb.IssueKubeconfigRequest(cluster="alpha")
        try:
            answer = await self._harness.service.issue_kubeconfig(request, Caller(listener="test"))
        except CallError:
            return
        # No other task has run since the response was created.
        record = self._harness.fleet["alpha"]
        assert record is not None
        assert record.cluster is not None
        token = json.loads(answer.kubeconfig.kubeconfig)["users"][0]["user"]["token"]
        minted_for = self._backend.asked[int(token.rpartition("-")[2]) - 1]
        assert minted_for.cluster is not None
        assert minted_for.cluster.incarnation == record.cluster.incarnation
        self.handed += 1

    async def _some_steps(self, fewer_than: int) -> None:
        for _ in range(self._chance.randrange(fewer_than)):
            await asyncio.sleep(0)


async def race(directory: Path, *, rounds: int, seed: int) -> int:
    """Run the rounds and return the number of kubeconfigs that were issued."""
    backend = Backend(Scope.CLUSTER)
    async with a_harness(directory, sources=[IssuerAssignment(backend)], per_second=1e6) as harness:
        made = Race(harness, backend, Random(seed))
        await made.run(rounds)
    return made.handed


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="./dev python -m tests.integration.grpc_server.race")
    parser.add_argument("--rounds", type=int, default=100_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    asked = parser.parse_args(argv)
    logging.getLogger(NAME).setLevel(logging.WARNING)  # each kubeconfig is logged
    with tempfile.TemporaryDirectory(prefix="milo-") as directory:
        handed = asyncio.run(race(Path(directory), rounds=asked.rounds, seed=asked.seed))
    click.echo(
        f"{asked.rounds} disengagements, {asked.rounds * _ASKING} concurrent requests: {handed} received a "
        "kubeconfig, none of them after the disengagement"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
