"""From a complete list on: what ends a watch, from where it goes on, and what is said of the source meanwhile."""

import math

import pytest

from milo_discoveryd.model.observation import Observation
from milo_kube.reflect.messages import (
    UNRESPONSIVE,
    DeletionReported,
    EventIgnored,
    Failure,
    FetchPage,
    ObjectChanged,
    OpenWatch,
    ReadWatch,
    Relisting,
    SourceEvent,
    Wait,
)
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.source_status import SourceState, SourceStatus
from milo_kube.reflect.wire import Bookmark, ErrorStatus, ObjectRemoved, Undecodable, UnknownEvent
from tests.unit.reflect.life import (
    CUT,
    END_OF_LIST,
    EXPIRED,
    PAGES,
    STREAMING,
    TIMEOUT_S,
    UNAVAILABLE,
    Life,
    changed,
    refused,
    watching,
)
from tests.unit.reflect.lines import seen

FIRST_PAGE = FetchPage("", 5000)


def resumes_from(version: str) -> OpenWatch:
    return OpenWatch(version, TIMEOUT_S)


def test_watch_events_are_reported_and_advance_the_version() -> None:
    life = watching()
    life.now += 5.0
    assert life.events(changed("a", "11"), ObjectRemoved("b", "uid-b", "12")) == [
        ObjectChanged(seen("a", "11")),
        DeletionReported("b", "uid-b"),
    ]
    life.ended()
    assert life.request == resumes_from("12")


def test_bookmark_advances_version_only() -> None:
    life = watching()
    life.now += 5.0
    assert life.events(Bookmark("15", False)) == []
    life.ended()
    assert life.request == resumes_from("15")


def test_event_without_version_keeps_version() -> None:
    life = watching()
    life.now += 5.0
    life.events(changed("a", ""), Bookmark("", False), ObjectRemoved("b", "", ""))
    life.ended()
    assert life.request == resumes_from("10")


def test_event_of_unknown_type_is_ignored() -> None:
    life = watching()
    assert life.events(UnknownEvent("a watch event of unknown type 'X'"), changed("a", "11")) == [
        EventIgnored("a watch event of unknown type 'X'"),
        ObjectChanged(seen("a", "11")),
    ]


def test_chunk_counts_as_contact() -> None:
    life = watching()
    life.now += 50.0
    life.events()
    assert life.reflector.status.last_contact == life.now


# --- whose word counts ---


def test_server_with_a_watch_is_trusted_for_single_objects() -> None:
    assert watching().reflector.trusted_from == -math.inf


@pytest.mark.parametrize("failure", [EXPIRED, UNAVAILABLE, CUT])
def test_unreachable_or_relisting_server_is_not_trusted(failure: Failure) -> None:
    life = watching()
    life.failed(failure)
    assert life.reflector.trusted_from == math.inf


def test_resumed_watch_is_trusted_after_an_event_or_a_while() -> None:
    life = watching()
    life.now += 5.0
    life.failed(CUT)
    assert life.reflector.trusted_from == math.inf
    life.opened()
    assert life.reflector.trusted_from == life.now + ReflectorPolicy().healthy_s
    life.events(Bookmark("15", False))
    assert life.reflector.trusted_from == -math.inf


# --- ends ---


def test_watch_reopens_at_once_and_silently_after_clean_end() -> None:
    life = watching()
    life.now += 300.0
    assert life.ended() == []
    assert life.request == resumes_from("10")
    assert life.opened() == []
    assert life.status == (SourceState.STREAMING, 100.0, "")


def test_interrupted_watch_is_resumed_before_source_is_stale() -> None:
    life = watching()
    life.events(changed("a", "11"))
    assert life.failed(CUT) == []
    assert life.request == resumes_from("11")
    assert life.status[0] is SourceState.STREAMING
    life.opened()
    assert life.status == (SourceState.STREAMING, 100.0, "")


def test_interrupted_quiet_watch_is_resumed_at_once() -> None:
    life = watching()
    life.now += 1.0
    life.failed(CUT)
    assert life.request == resumes_from("10")


def test_failed_resume_makes_source_stale() -> None:
    life = watching()
    life.now += 60.0
    life.failed(Failure(UNRESPONSIVE, "it did not answer"))
    assert life.request == Wait(161.0)
    assert life.status == (SourceState.STALE, 160.0, "Unresponsive")


def test_watch_interrupted_before_first_byte_waits_for_backoff() -> None:
    life = watching()
    life.failed(CUT)
    assert life.request == Wait(101.0)
    assert life.status == (SourceState.STALE, 100.0, "ConnectionLost")


def test_server_that_stays_down_makes_source_stale() -> None:
    life = watching()
    life.events(changed("a", "11"))
    life.failed(CUT)
    assert life.request == resumes_from("11")
    life.now += 1.0
    life.failed(UNAVAILABLE)
    assert life.reflector.status == SourceStatus(SourceState.STALE, 101.0, "ServerError", "503: not now", 100.0)
    life.now += 2.0
    assert life.request == resumes_from("11")
    life.failed(Failure("ConnectFailed", "connection refused"))
    assert life.reflector.status == SourceStatus(
        SourceState.STALE, 101.0, "ConnectFailed", "connection refused", 100.0
    ), "since it became so; for the latest reason"
    life.now += 4.0
    life.opened()
    assert life.reflector.status == SourceStatus(SourceState.STREAMING, 107.0, last_contact=107.0)


def test_backoff_grows_while_server_is_down_and_resets_after_healthy_watch() -> None:
    life = watching()
    life.events(changed("a", "11"))
    life.failed(CUT)
    for delay in (2.0, 4.0, 8.0, 8.0):
        assert life.request == resumes_from("11")
        life.failed(UNAVAILABLE)
        assert life.request == Wait(life.now + delay)
        life.now += delay
    life.opened()
    life.now += 10.0
    life.events(Bookmark("12", False))
    life.failed(CUT)
    assert life.request == resumes_from("12")
    life.failed(UNAVAILABLE)
    assert life.request == Wait(life.now + 2.0)


def test_backoff_grows_while_watches_are_cut_within_seconds() -> None:
    life = watching()
    for delay in (1.0, 2.0, 4.0, 8.0, 8.0):
        life.failed(CUT)
        assert life.request == Wait(life.now + delay)
        life.now += delay
        life.opened()
        life.events(changed("a", "11"))
        life.now += 9.9


def test_quiet_watch_that_lasted_resets_failures() -> None:
    life = watching()
    life.failed(CUT)
    life.now += 1.0
    life.opened()
    life.now += 10.0
    life.ended()
    life.opened()
    life.failed(CUT)
    assert life.request == Wait(life.now + 1.0)


def test_watches_that_are_ended_at_once_are_failures() -> None:
    life = watching()
    for delay in (1.0, 2.0, 4.0):
        assert life.ended() == []
        assert life.status[2] == "VeryShortWatch"
        assert life.request == Wait(life.now + delay)
        life.now += delay
        life.opened()


def test_watches_that_are_ended_at_once_after_a_word_are_failures_from_the_second_on() -> None:
    life = watching()
    life.events(Bookmark("10", False))
    life.ended()
    assert life.status[0] is SourceState.STREAMING
    life.opened()
    life.events(Bookmark("10", False))
    life.ended()
    assert life.status == (SourceState.STALE, 100.0, "VeryShortWatch")
    assert life.request == Wait(102.0)


# --- versions that are no good any more ---


@pytest.mark.parametrize("code", [410, 504])
def test_expired_version_in_stream_leads_to_relist(code: int) -> None:
    life = watching()
    assert life.events(refused(code, "Expired"), changed("a", "11")) == [Relisting("Expired")]
    assert not life.reflector.is_reading
    assert life.request == FIRST_PAGE
    assert life.status == (SourceState.CATCHING_UP, 100.0, "Expired")


@pytest.mark.parametrize("status", [410, 504])
def test_expired_version_in_status_leads_to_relist(status: int) -> None:
    life = watching()
    life.now += 60.0
    life.ended()
    assert life.request == resumes_from("10")
    assert life.failed(Failure("Expired", "too old", status)) == [Relisting("Expired")]
    assert life.request == FIRST_PAGE


def test_relist_ends_catching_up() -> None:
    life = watching()
    life.failed(EXPIRED)
    life.now += 2.0
    life.page(version="20")
    assert life.status == (SourceState.STREAMING, 102.0, "")
    assert life.request == resumes_from("20")


def test_consecutive_relists_are_delayed() -> None:
    life = watching()
    life.failed(EXPIRED)
    for delay in (2.0, 4.0, 8.0):
        life.page()
        life.opened()
        assert life.failed(EXPIRED) == [Relisting("Expired")]
        assert life.request == Wait(life.now + delay)
        life.now += delay


def test_lists_that_come_as_streams_are_waited_for_just_so() -> None:
    life = watching(STREAMING)
    life.failed(EXPIRED)
    for delay in (2.0, 4.0, 8.0):
        life.opened()
        life.events(Bookmark("10", True))
        life.events(changed("a", "11"))
        life.events(refused(410, "Expired"))
        assert life.request == Wait(life.now + delay)
        life.now += delay


@pytest.mark.parametrize(("lasted_s", "waits_s"), [(30.0, 0.0), (2.0, 0.0), (1.5, 0.5)])
def test_lists_are_apart_and_one_long_after_the_last_is_begun_at_once(lasted_s: float, waits_s: float) -> None:
    life = watching()
    life.failed(EXPIRED)
    life.page()
    life.opened()
    life.now += lasted_s
    life.failed(EXPIRED)
    assert life.request == (Wait(life.now + waits_s) if waits_s else FIRST_PAGE)


def test_list_failure_count_resets_after_a_long_watch() -> None:
    life = watching()
    for lasted_s in (0.0, 0.0, 30.0):
        life.now += lasted_s
        life.failed(EXPIRED)
        if lasted_s:
            break
        life.now += 8.0
        life.page()
        life.opened()
    assert life.request == FIRST_PAGE
    life.page()
    life.opened()
    life.failed(EXPIRED)
    assert life.request == Wait(life.now + 2.0)


@pytest.mark.parametrize("status", [400, 404, 406, 422, 500, 501])
def test_watch_whose_version_is_refused_leads_to_relist(status: int) -> None:
    life = watching()
    life.now += 60.0
    life.ended()
    life.failed(Failure("NotFound", "the server could not find the requested resource", status))
    assert life.status == (SourceState.STALE, 160.0, "NotFound")
    life.now += 1.0
    assert life.request == FIRST_PAGE


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_watch_rejected_temporarily_is_resumed_from_same_version(status: int) -> None:
    life = watching()
    life.now += 60.0
    life.ended()
    life.failed(Failure("No", "no", status))
    life.now += 1.0
    assert life.request == resumes_from("10")


def test_error_event_without_version_is_an_interruption() -> None:
    life = watching()
    life.events(changed("a", "11"))
    assert life.events(ErrorStatus(500, "InternalError", "etcdserver: leader changed")) == []
    assert life.request == resumes_from("11")


# --- junk ---


def test_watch_reopens_from_last_version_after_junk() -> None:
    life = watching()
    assert life.events(changed("a", "11"), Undecodable("?"), changed("b", "12")) == [ObjectChanged(seen("a", "11"))]
    assert life.request == resumes_from("11")


def test_junk_twice_at_the_same_version_leads_to_a_new_list() -> None:
    life = watching()
    life.events(changed("a", "11"))
    life.events(Undecodable("?"))
    life.opened()
    assert life.events(Undecodable("?")) == [Relisting("MalformedResponse")]
    assert life.request == FIRST_PAGE


def test_junk_at_another_version_is_retried() -> None:
    life = watching()
    life.events(changed("a", "11"))
    life.events(Undecodable("?"))
    life.opened()
    findings: list[SourceEvent[Observation]] = life.events(changed("a", "12"), Undecodable("?"))
    assert findings == [ObjectChanged(seen("a", "12"))]
    assert life.request == Wait(102.0)
    life.now += 2.0
    assert life.request == resumes_from("12")


# --- silence ---


def test_silence_without_bookmarks_is_tolerated_until_server_timeout() -> None:
    life = watching()
    assert life.request == ReadWatch(100.0 + TIMEOUT_S + 10.0)
    life.now += 100.0
    life.events(changed("a", "11"))
    assert life.request == ReadWatch(100.0 + TIMEOUT_S + 10.0)
    life.now = 350.0
    assert life.silent() == []
    assert life.request == resumes_from("11")


def test_silence_of_ninety_seconds_with_bookmarks_ends_watch() -> None:
    life = watching()
    life.now += 60.0
    life.events(Bookmark("15", False))
    assert life.request == ReadWatch(250.0)
    life.now += 90.0
    assert life.silent() == []
    assert life.request == resumes_from("15")
    assert life.status[0] is SourceState.STREAMING


def test_watch_silent_from_start_with_future_version_leads_to_relist() -> None:
    life = watching()
    life.events(Bookmark("15", False))
    life.now += 60.0
    life.ended()
    life.opened()
    assert life.request == ReadWatch(250.0)
    life.now += 90.0
    assert life.silent() == [Relisting("Silence")]
    assert life.request == FIRST_PAGE
    assert life.status == (SourceState.CATCHING_UP, 250.0, "Silence")


def cut() -> Life:
    """On a watch without bookmarks whose connection was lost, at the time of the next attempt."""
    life = watching()
    life.failed(CUT)
    assert isinstance(life.request, Wait)
    life.now = life.request.until
    assert life.request == resumes_from("10")
    return life


def test_server_of_unknown_identity_without_bookmarks_is_relisted() -> None:
    life = cut()
    life.opened()
    assert life.request == ReadWatch(life.now + 90.0)
    life.now += 90.0
    assert life.silent() == [Relisting("Silence")]
    assert life.request == FIRST_PAGE


def test_server_without_bookmarks_that_sent_a_change_is_trusted() -> None:
    life = cut()
    life.opened()
    life.events(changed("a", "11"))
    assert life.request == ReadWatch(life.now + TIMEOUT_S + 10.0)


def test_initial_events_end_bookmark_implies_bookmarks() -> None:
    assert watching(STREAMING).request == ReadWatch(190.0)


def test_failed_list_while_catching_up_makes_source_stale_since_first_failure() -> None:
    life = watching()
    life.failed(EXPIRED)
    life.now += 5.0
    life.page(version="20", then="t1")
    life.failed(EXPIRED)
    assert life.status == (SourceState.CATCHING_UP, 100.0, "Expired")
    life.page(version="20", then="t1")
    life.failed(UNAVAILABLE)
    assert life.status == (SourceState.STALE, 105.0, "ServerError")


def test_catching_up_keeps_its_start() -> None:
    life = watching()
    life.failed(EXPIRED)
    life.now += 5.0
    life.page()
    life.opened()
    life.now += 1.0
    life.failed(EXPIRED)
    assert life.status == (SourceState.CATCHING_UP, 106.0, "Expired")


# --- what a driver must not do ---


def test_failure_without_request_in_flight_is_an_error() -> None:
    life = Life()
    life.failed()
    with pytest.raises(AssertionError, match="no request was made"):
        life.failed()


@pytest.mark.parametrize("policy", [PAGES, STREAMING])
def test_f5_dripping_event_is_abandoned(policy: ReflectorPolicy) -> None:
    life = watching(policy)
    life.reflector.events([END_OF_LIST], life.now)
    life.reflector.events([changed("a", "11")], life.now, partial=True)
    for _ in range(29):
        life.now += 1.0
        life.reflector.events([], life.now, partial=True)
    assert life.request == ReadWatch(life.now + 1.0)
    life.now += 1.0
    life.silent()
    assert life.request == resumes_from("11")


def test_f5_each_event_has_its_own_deadline() -> None:
    life = watching()
    for version in range(11, 20):
        life.now += 20.0
        life.reflector.events([changed("a", str(version))], life.now, partial=True)
    assert life.request == ReadWatch(life.now + 30.0)
    life.events(changed("a", "20"))
    assert life.request == ReadWatch(100.0 + 240.0 + 10.0)


def test_f5_dripping_list_is_abandoned() -> None:
    life = Life(STREAMING)
    life.opened()
    life.reflector.events([], life.now, partial=True)
    life.now += 10.0
    life.reflector.events([], life.now, partial=True)
    life.now += 10.0
    life.reflector.events([], life.now, partial=True)
    life.now += 10.0
    life.silent()
    assert life.status == (SourceState.STALE, life.now, "SlowLine")


def test_server_that_refuses_the_version_it_listed_is_still_trusted_for_reads() -> None:
    life = watching()
    life.now += 60.0
    life.ended()
    life.failed(EXPIRED)
    life.page(version="20")
    life.failed(EXPIRED)
    assert life.status[0] is SourceState.CATCHING_UP
    assert life.reflector.trusted_from == -math.inf


def test_server_that_refuses_a_version_is_not_trusted_before_it_lists() -> None:
    life = watching()
    life.now += 60.0
    life.ended()
    life.failed(EXPIRED)
    assert life.reflector.trusted_from == math.inf
