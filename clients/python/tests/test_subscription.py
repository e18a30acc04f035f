"""How a watch counts its connections, with the time as an argument."""

from __future__ import annotations

from datetime import timedelta

from milo_discovery import BackoffPolicy, StreamBroken
from milo_discovery._subscription import Subscription

from .messages import engaged, following, snapshot
from .sayings import said

SECOND = timedelta(seconds=1)


def subscription() -> Subscription:
    return Subscription({}, BackoffPolicy(initial=SECOND, maximum=8 * SECOND, healthy=10 * SECOND))


def taken(watched: Subscription) -> list[str]:
    items = [said(item) for item in watched.pending]
    watched.pending.clear()
    return items


def test_a_loss_is_told_once_however_many_attempts_follow():
    watched = subscription()
    for now in range(3):
        watched.open()
        watched.lost(StreamBroken("nobody there"), now)
    assert taken(watched) == ["disconnected by StreamBroken"]
    watched.open()
    watched.take(snapshot("1"), 3)
    assert taken(watched) == ["connected", "synced 0"]
    watched.lost(StreamBroken("gone"), 4)
    assert taken(watched) == ["disconnected by StreamBroken"]
    assert not watched.connected


def test_only_time_spent_connected_counts_as_a_healthy_run():
    watched = subscription()
    watched.open()
    assert watched.lost(StreamBroken("after an hour of connecting"), 3600) <= SECOND
    watched.open()
    assert watched.lost(StreamBroken("after another"), 7200) >= SECOND
    watched.open()
    watched.take(snapshot("1"), 7200)
    assert watched.lost(StreamBroken("after ten good seconds"), 7210) <= SECOND


def test_each_stream_is_asked_for_with_where_the_last_one_stood():
    watched = subscription()
    first = watched.open()
    watched.take(snapshot("1", engaged("a")), 0)
    watched.take(following("1", "2"), 1)
    watched.cut()
    assert not watched.connected
    assert (first.resume_revision, watched.open().resume_revision) == ("", "2")


def test_a_resumed_stream_says_so():
    watched = subscription()
    watched.open()
    watched.take(snapshot("1"), 0)
    watched.cut()
    watched.open()
    watched.take(following("1", "2"), 1)
    assert taken(watched) == ["connected", "synced 0", "resumed"]
