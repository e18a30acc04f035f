"""Whether another publisher follows what this one does not."""

from collections import deque
from datetime import UTC, datetime

import pytest

from milo_objects.messages import Heartbeat, ScopeMessage
from milo_objects.publisher import _Looks
from milo_objects.scope import FleetCluster, Synced


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
