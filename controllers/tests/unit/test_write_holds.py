"""Objects that each of their reconciles writes."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from milo_controllers.own_writes import OwnWrites, Write
from milo_controllers.work_queue import ObjectKey
from milo_controllers.write_holds import WriteHolds


async def test_objects_of_one_cluster_that_are_written_all_the_time_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    holds = WriteHolds("widgets", lambda _: None)
    member: Any = SimpleNamespace(informers={}, own_writes=OwnWrites())
    now = asyncio.get_running_loop().time()
    for cluster in ("alpha", "beta"):
        for number in range(50):
            for _ in range(30):
                key = ObjectKey(cluster, 1, "", f"o{number}")
                holds.hold(member, key, [Write("v1/widgets", ("", key.name), "u", "1")], now)
    assert [record.getMessage().partition(" is ")[0] for record in caplog.records] == [
        "widgets: alpha: o0",
        "widgets: beta: o0",
    ]
