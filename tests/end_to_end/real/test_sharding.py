"""A shard group of processes on a real kube-apiserver: one writer at a time for each project, whatever fails.

The full run, with five members and a thousand projects, is `./dev bench sharding --real`.
"""

import asyncio
import signal
from pathlib import Path

import pytest

from milo_discoveryd.sharding.credential_fence import TOKEN_CACHE_S
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.sharding.run import sharding_run

pytestmark = [pytest.mark.nightly, pytest.mark.asyncio(loop_scope="session")]

QUIET_S = 30.0


async def test_projects_have_one_writer_at_a_time(built: Programs, directory: Path) -> None:
    async with sharding_run(built, directory, interval_s=2.0) as run:
        await run.populate(40)
        async with run.step([0, 1, 2]):
            await run.start(0, 1, 2)
        assert await run.lease_requests([0, 1, 2], QUIET_S) <= 1.0

        # A pod is killed, while the daemon of another pod is suspended until after its eviction.
        async with run.step([0, 3]) as moved:
            await run.pod(1).kill()
            run.pod(2).signal(signal.SIGSTOP, with_operator=False)
            await run.start(3)
        assert moved[0].projects > 0

        async with run.step([0, 2, 3]):
            run.pod(2).signal(signal.SIGCONT, with_operator=False)

        # A rolling update and a short restart of etcd move no projects.
        async with run.step([0, 2, 3]) as moved:
            await run.terminate(0)
            await run.start(0)
        assert moved[0].projects == 0
        async with run.step([0, 2, 3]) as moved:
            await run.stop_etcd()
            await run.start_etcd()
        assert moved[0].hand_overs == []
    assert run.history.breaches == []


async def test_credential_of_a_stopped_owner_is_revoked_before_the_next_owner_writes(
    built: Programs, directory: Path
) -> None:
    async with sharding_run(built, directory, interval_s=1.0, fenced=True) as run:
        await run.populate(8)
        async with run.step([0, 1]):
            await run.start(0, 1)
        project = next(project for project in run.projects if run.writer(project) == "operator-0")
        token = await run.pod(0).token_of(project)
        accepted: list[float] = []

        async def follow() -> None:
            async for at, is_accepted in run.follow_bearer(token):
                if not is_accepted:
                    break
                accepted.append(at)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            # The daemon that issued the token is suspended, so another one has to revoke it.
            async with run.step([1]) as moved:
                run.pod(0).signal(signal.SIGSTOP, with_operator=False)
        (taken,) = (hand_over for hand_over in moved[0].hand_overs if hand_over.project == project)
        assert accepted[-1] < taken.at

        async with run.step([1, 2]) as moved:
            await run.start(2)
        assert moved[0].projects > 0
        assert min(hand_over.gap_s for hand_over in moved[0].hand_overs) > TOKEN_CACHE_S
    assert run.history.breaches == []
