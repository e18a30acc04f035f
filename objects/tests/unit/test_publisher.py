"""Whether another publisher follows what this one does not, and how the stream is read."""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from milo_discovery.model import ClusterReport, Engagement, EngagementReason, Listing, SourceState, SourceStatus
from milo_objects.jetstream import NatsOptions
from milo_objects.messages import Heartbeat, ScopeMessage, StoredMessage
from milo_objects.publisher import _AT_ONCE, ClusterDirectory, ObjectPublisher, _last_messages, _Looks, _Orphan
from milo_objects.scope import FleetCluster, Synced
from milo_objects.subjects import ClusterSubject


def scope(publisher: str = "") -> ScopeMessage:
    cluster = FleetCluster(name="eu#web", incarnation="i1", uid="u1")
    return ScopeMessage(cluster, Synced(datetime.fromtimestamp(0, UTC)), 1, publisher)


@pytest.mark.parametrize(
    ("heartbeat", "sequence", "at", "is_followed"),
    [
        (Heartbeat("", {"eu": ""}), 7, 80.0, True),
        (None, 7, 80.0, True),
        (Heartbeat("", {"eu": ""}), 7, 60.0, False),
        (Heartbeat("", {"eu": ""}), 8, 80.0, False),
        (Heartbeat("", {"eu": "stale", "us": ""}), 7, 80.0, False),
        (Heartbeat("", {"us": ""}), 7, 80.0, False),
    ],
    ids=["heard", "heard, of an earlier version", "silent", "its own", "not following it", "of another source"],
)
def test_scope_is_followed_if_another_publisher_of_its_source_is_heard(
    heartbeat: Heartbeat | None, sequence: int, at: float, *, is_followed: bool
) -> None:
    looks = _Looks(listens_since=0.0, heard=deque([(sequence, at, heartbeat)]), own=deque([8]))
    assert looks.may_be_followed(scope(), 100.0) is is_followed
    assert not looks.may_be_followed(scope("one"), 100.0)


def test_scope_may_be_followed_until_another_publisher_would_have_been_heard() -> None:
    assert [_Looks(listens_since=80.0).may_be_followed(scope(), now) for now in (100.0, 111.0)] == [True, False]


async def test_clusters_of_others_are_looked_up_side_by_side() -> None:
    """Found by a reader: in a shard group these are thousands, and after a restart readers wait for the last answer."""
    asked: list[str] = []
    all_asked = asyncio.Event()

    class Daemon:
        async def list(self, **_: object) -> Listing:
            return Listing(source=SourceStatus(state=SourceState.STREAMING))

        async def get(self, name: str) -> ClusterReport:
            asked.append(name)
            if len(asked) == 8:
                all_asked.set()
            await all_asked.wait()
            return ClusterReport(engagement=Engagement(reason=EngagementReason.UNASSIGNED))

    source: Any = None
    publisher = ObjectPublisher(source, cast(ClusterDirectory, Daemon()), [], NatsOptions(servers=()))
    names = [f"c{number}" for number in range(20)]
    orphans = {name: FleetCluster(name=name, incarnation="i1", uid="u1") for name in (*names, "eu#web")}
    async with asyncio.timeout(5.0):
        verdicts = await publisher._judge(orphans, {""})
    assert asked == names
    assert verdicts == {**dict.fromkeys(names, _Orphan.UNASSIGNED), "eu#web": _Orphan.UNKNOWN}


def test_very_many_messages_are_decoded_in_steps() -> None:
    """A tenant can have a cluster with as many objects: all at once, nothing else ran for two seconds."""

    class Session:
        async def last_messages(self, _: Sequence[str]) -> tuple[list[StoredMessage], int]:
            return [
                StoredMessage(str(ClusterSubject(f"c{number}")), number, {}, b"") for number in range(10 * _AT_ONCE)
            ], 7

    async def main() -> None:
        reading = asyncio.create_task(_last_messages(Session(), []))  # type: ignore[arg-type]
        turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        stored, last = reading.result()
        assert (len(stored), last) == (10 * _AT_ONCE, 7)
        assert turns >= 10

    asyncio.run(main())
