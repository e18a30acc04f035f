"""Calls that read the whole fleet: the many calls of one caller do not delay those of another."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.log.change_notifier import ReadingTurns
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.filter import EVERYTHING
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.rights import UNLIMITED, Grant, Rights, RightsRule
from milo_discoveryd.server.calls import listings, server_info, service
from milo_discoveryd.server.calls.grpc_errors import PermissionDeniedError
from milo_discoveryd.server.calls.stream import BatchSender
from tests.integration.grpc_server.callers import PROD, rule, rules
from tests.integration.grpc_server.conftest import Harness, a_harness, ready

CLUSTERS = 200
MANY, ONE = (Caller(listener="here", uid=uid) for uid in (1, 2))
LIST = pb.ListClustersRequest(filter=pb.ClusterFilter(label_selector="env=prod"))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (listings, server_info, service):
        monkeypatch.setattr(module, "CLUSTERS_PER_STEP", 10)


def lists(harness: Harness) -> Callable[[Caller], Awaitable[Any]]:
    return lambda caller: harness.service.list_clusters(LIST, caller)


def descriptions(harness: Harness) -> Callable[[Caller], Awaitable[Any]]:
    return lambda caller: harness.service.get_server_info(pb.GetServerInfoRequest(), caller)


@pytest.mark.parametrize("calls", [lists, descriptions])
async def test_many_calls_of_one_caller_do_not_delay_a_call_of_another(
    tmp_path: Path, calls: Callable[[Harness], Callable[[Caller], Awaitable[Any]]]
) -> None:
    async with a_harness(tmp_path, rights=rules(rule("here", PROD))) as harness:
        harness.listed(*(ready(f"p-{number:03}", env="prod") for number in range(CLUSTERS)))
        call = calls(harness)
        many = [asyncio.ensure_future(call(MANY)) for _ in range(40)]
        await asyncio.sleep(0)
        await call(ONE)
        assert sum(each.done() for each in many) <= 2
        await asyncio.gather(*many)


@pytest.mark.parametrize("is_waited_for", [False, True])
async def test_stream_computes_its_next_batch_while_one_is_sent_unless_others_wait_for_their_turn(
    harness: Harness, is_waited_for: bool
) -> None:
    harness.listed(ready("alpha"))
    turns = ReadingTurns()
    prefetched: list[int] = []

    class RecordingCursor(Cursor):
        def prefetch(self) -> None:
            prefetched.append(self.revision)

    async def send(data: bytes) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    others = asyncio.create_task(turns.wait("others")) if is_waited_for else None
    await asyncio.sleep(0)
    sender = BatchSender(send, turns, stalled_s=60.0, prefetched_bytes=1)
    async with sender.limited():
        await sender.send(b"batch", RecordingCursor(harness.fleet.log, EVERYTHING, None))
    assert bool(prefetched) is not is_waited_for
    if others is not None:
        await others


async def test_list_that_has_waited_for_its_turn_is_refused_if_the_rights_of_its_caller_ended(tmp_path: Path) -> None:
    grants = [
        RightsRule(CallerSelector(uids=frozenset({caller.uid or 0})), Grant(rule="some", scope=PROD, terms=UNLIMITED))
        for caller in (MANY, ONE)
    ]
    async with a_harness(tmp_path, rights=Rights(tuple(grants))) as harness:
        harness.listed(*(ready(f"p-{number:03}", env="prod") for number in range(CLUSTERS)))
        call = lists(harness)
        first, waiting = asyncio.ensure_future(call(MANY)), asyncio.ensure_future(call(MANY))
        await asyncio.sleep(0)
        harness.service.change_rights(Rights(tuple(grants[1:])))
        assert len((await call(ONE)).clusters) == CLUSTERS
        with pytest.raises(PermissionDeniedError):
            await waiting
        await first
