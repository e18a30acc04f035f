"""Tests of the watch logic without I/O: reconnects, backoff and notices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from milo_discovery import BackoffPolicy, Disconnected, Event, StreamBroken
from milo_discovery._subscription import StreamSubscription

from .kubeconfigs import text
from .messages import engaged, following, snapshot
from .summaries import summary

SECOND = timedelta(seconds=1)


def subscription() -> StreamSubscription:
    return StreamSubscription({}, BackoffPolicy(initial=SECOND, maximum=8 * SECOND, healthy=10 * SECOND))


def taken(watched: StreamSubscription) -> list[str]:
    items = [summary(item) for item in watched.pending]
    watched.pending.clear()
    return items


def test_subscription_reports_disconnect_once_per_connection_loss():
    watched = subscription()
    for now in range(3):
        watched.next_request()
        watched.stream_lost(StreamBroken("nobody there"), now)
    assert taken(watched) == ["disconnected by StreamBroken"]
    watched.next_request()
    watched.received(snapshot("1"), 3)
    assert taken(watched) == ["connected", "synced 0"]
    heard_until = datetime.now(UTC)
    watched.stream_lost(StreamBroken("gone"), 4)
    [lost] = watched.pending
    assert isinstance(lost, Disconnected)
    assert lost.heard_at is not None
    assert lost.heard_at <= heard_until
    assert taken(watched) == ["disconnected by StreamBroken"]
    assert not watched.connected


def test_subscription_backoff_is_reset_by_connected_time_only():
    watched = subscription()
    watched.next_request()
    assert watched.stream_lost(StreamBroken("after an hour of connecting"), 3600) <= SECOND
    watched.next_request()
    assert watched.stream_lost(StreamBroken("after another"), 7200) >= SECOND
    watched.next_request()
    watched.received(snapshot("1"), 7200)
    assert watched.stream_lost(StreamBroken("after ten good seconds"), 7210) <= SECOND


def test_subscription_reopens_with_the_resume_revision():
    watched = subscription()
    first = watched.next_request()
    watched.received(snapshot("1", engaged("a")), 0)
    watched.received(following("1", "2"), 1)
    watched.stream_closed()
    assert not watched.connected
    assert (first.resume_revision, watched.next_request().resume_revision) == ("", "2")


def test_connected_notice_says_whether_the_stream_was_resumed():
    watched = subscription()
    watched.next_request()
    watched.received(snapshot("1"), 0)
    watched.stream_closed()
    watched.next_request()
    watched.received(following("1", "2"), 1)
    assert taken(watched) == ["connected", "synced 0", "resumed"]


def test_kubeconfig_with_a_credential_plugin_is_omitted_from_its_event(caplog):
    watched = subscription()
    watched.next_request()
    refused = engaged("a")
    refused.kubeconfig.kubeconfig = text(exec={"command": "/bin/sh"})  # type: ignore[arg-type]  # not a string
    watched.received(snapshot("1", refused, engaged("b", token="t")), 0)
    _, first, second, _ = watched.pending
    assert isinstance(first, Event)
    assert isinstance(second, Event)
    assert (first.kubeconfig, caplog.messages) == (
        None,
        [
            "kubeconfig of cluster 'a' refused: the kubeconfig is not of the form that the daemon writes: user has "
            "exec: not supported"
        ],
    )
    assert second.kubeconfig is not None
