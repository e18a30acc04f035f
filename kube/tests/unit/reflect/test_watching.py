"""The watch after a complete list: how it ends, where it resumes, and the status of the source."""

import math

import pytest

from kube.tests.unit.reflect.lines import Found, seen
from kube.tests.unit.reflect.reflector_driver import (
    CUT,
    END_OF_LIST,
    EXPIRED,
    PAGES,
    STREAMING,
    TIMEOUT_S,
    UNAVAILABLE,
    ReflectorDriver,
    changed,
    listed,
    refused,
    watching,
)
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
    VersionReached,
    Wait,
)
from milo_kube.reflect.reflector import ReflectorPolicy
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reflect.wire import Bookmark, ErrorStatus, ObjectRemoved, Undecodable, UnknownEvent

FIRST_PAGE = FetchPage("", 5000)


def resumes_from(version: str) -> OpenWatch:
    return OpenWatch(version, TIMEOUT_S)


def test_watch_events_are_reported_and_advance_the_version() -> None:
    driver = watching()
    driver.now += 5.0
    assert driver.events(changed("a", "11"), ObjectRemoved("b", "uid-b", "12")) == [
        ObjectChanged(seen("a", "11")),
        DeletionReported("b", "uid-b", version="12"),
    ]
    driver.ended()
    assert driver.request == resumes_from("12")


def test_bookmark_advances_version_only() -> None:
    driver = watching()
    driver.now += 5.0
    assert driver.events(Bookmark("15", False)) == [VersionReached("15")]
    driver.ended()
    assert driver.request == resumes_from("15")


def test_event_without_version_keeps_version() -> None:
    driver = watching()
    driver.now += 5.0
    driver.events(changed("a", ""), Bookmark("", False), ObjectRemoved("b", "", ""))
    driver.ended()
    assert driver.request == resumes_from("10")


def test_event_of_unknown_type_is_ignored() -> None:
    driver = watching()
    assert driver.events(UnknownEvent("a watch event of unknown type 'X'"), changed("a", "11")) == [
        EventIgnored("a watch event of unknown type 'X'"),
        ObjectChanged(seen("a", "11")),
    ]


def test_watch_chunk_without_events_updates_last_contact() -> None:
    driver = watching()
    driver.now += 50.0
    driver.events()
    assert driver.reflector.status.last_contact == driver.now


# --- trust in the server ---


def test_single_object_reads_are_trusted_while_the_watch_is_open() -> None:
    assert watching().reflector.trusted_from == -math.inf


@pytest.mark.parametrize("failure", [EXPIRED, UNAVAILABLE, CUT])
def test_reads_are_not_trusted_while_the_server_is_unreachable_or_relisted(failure: Failure) -> None:
    driver = watching()
    driver.failed(failure)
    assert driver.reflector.trusted_from == math.inf


def test_reads_are_trusted_again_after_an_event_or_a_healthy_period_of_the_resumed_watch() -> None:
    driver = watching()
    driver.now += 5.0
    driver.failed(CUT)
    assert driver.reflector.trusted_from == math.inf
    driver.opened()
    assert driver.reflector.trusted_from == driver.now + ReflectorPolicy().healthy_s
    driver.events(Bookmark("15", False))
    assert driver.reflector.trusted_from == -math.inf


# --- forbidden watches ---


def test_collection_whose_watch_stays_forbidden_is_listed_again_after_five_minutes() -> None:
    """The right to list may be there without that to watch."""
    driver = listed()
    for _ in range(2):
        began_at = driver.now
        while isinstance(request := driver.request, OpenWatch | Wait):
            if isinstance(request, Wait):
                driver.now = request.until
            else:
                driver.failed(Failure("Forbidden", "403: cannot watch", 403))
                assert driver.status == (ViewState.STALE, began_at, "Forbidden")
        assert request == FIRST_PAGE
        assert 300.0 <= driver.now - began_at < 320.0
        driver.page(version="20")


def test_watch_that_is_forbidden_for_less_than_five_minutes_is_resumed() -> None:
    driver = watching()
    driver.now += 3600.0
    driver.ended()
    driver.failed(Failure("Forbidden", "403: cannot watch", 403))
    driver.now += 299.0
    assert driver.request == resumes_from("10")
    driver.failed(Failure("Forbidden", "403: cannot watch", 403))
    driver.now += 2.0
    assert driver.request == resumes_from("10")


# --- ends ---


def test_cleanly_ended_watch_reopens_at_once_without_a_status_change() -> None:
    driver = watching()
    driver.now += 300.0
    assert driver.ended() == []
    assert driver.request == resumes_from("10")
    assert driver.opened() == []
    assert driver.status == (ViewState.STREAMING, 100.0, "")


def test_interrupted_watch_is_resumed_before_source_is_stale() -> None:
    driver = watching()
    driver.events(changed("a", "11"))
    assert driver.failed(CUT) == []
    assert driver.request == resumes_from("11")
    assert driver.status[0] is ViewState.STREAMING
    driver.opened()
    assert driver.status == (ViewState.STREAMING, 100.0, "")


def test_interrupted_quiet_watch_is_resumed_at_once() -> None:
    driver = watching()
    driver.now += 1.0
    driver.failed(CUT)
    assert driver.request == resumes_from("10")


def test_unresponsive_server_makes_source_stale() -> None:
    driver = watching()
    driver.now += 60.0
    driver.failed(Failure(UNRESPONSIVE, "it did not answer"))
    assert driver.request == Wait(161.0)
    assert driver.status == (ViewState.STALE, 160.0, "Unresponsive")


def test_watch_interrupted_before_first_byte_waits_for_backoff() -> None:
    driver = watching()
    driver.failed(CUT)
    assert driver.request == Wait(101.0)
    assert driver.status == (ViewState.STALE, 100.0, "ConnectionLost")


def test_server_that_stays_down_makes_source_stale() -> None:
    driver = watching()
    driver.events(changed("a", "11"))
    driver.failed(CUT)
    assert driver.request == resumes_from("11")
    driver.now += 1.0
    driver.failed(UNAVAILABLE)
    assert driver.reflector.status == ViewStatus(ViewState.STALE, 101.0, "ServerError", "503: not now", 100.0, 102.0)
    driver.now += 2.0
    assert driver.request == resumes_from("11")
    driver.failed(Failure("ConnectFailed", "connection refused"))
    assert driver.reflector.status == ViewStatus(
        ViewState.STALE, 101.0, "ConnectFailed", "connection refused", 100.0, 107.0
    ), "stale since the first failure, with the reason of the latest one"
    driver.now += 4.0
    driver.opened()
    assert driver.reflector.status == ViewStatus(ViewState.STREAMING, 107.0, last_contact=107.0)


def test_backoff_grows_while_server_is_down_and_resets_after_healthy_watch() -> None:
    driver = watching()
    driver.events(changed("a", "11"))
    driver.failed(CUT)
    for delay in (2.0, 4.0, 8.0, 8.0):
        assert driver.request == resumes_from("11")
        driver.failed(UNAVAILABLE)
        assert driver.request == Wait(driver.now + delay)
        driver.now += delay
    driver.opened()
    driver.now += 10.0
    driver.events(Bookmark("12", False))
    driver.failed(CUT)
    assert driver.request == resumes_from("12")
    driver.failed(UNAVAILABLE)
    assert driver.request == Wait(driver.now + 2.0)


def test_backoff_grows_while_watches_are_interrupted_within_seconds() -> None:
    driver = watching()
    for delay in (1.0, 2.0, 4.0, 8.0, 8.0):
        driver.failed(CUT)
        assert driver.request == Wait(driver.now + delay)
        driver.now += delay
        driver.opened()
        driver.events(changed("a", "11"))
        driver.now += 9.9


def test_long_quiet_watch_resets_failure_count() -> None:
    driver = watching()
    driver.failed(CUT)
    driver.now += 1.0
    driver.opened()
    driver.now += 10.0
    driver.ended()
    driver.opened()
    driver.failed(CUT)
    assert driver.request == Wait(driver.now + 1.0)


def test_watches_that_end_at_once_are_reopened_with_backoff() -> None:
    driver = watching()
    for delay in (1.0, 2.0, 4.0):
        assert driver.ended() == []
        assert driver.status[2] == "VeryShortWatch"
        assert driver.request == Wait(driver.now + delay)
        driver.now += delay
        driver.opened()


def test_second_watch_that_ends_soon_after_data_is_reopened_with_backoff() -> None:
    driver = watching()
    driver.events(Bookmark("10", False))
    driver.ended()
    assert driver.status[0] is ViewState.STREAMING
    driver.opened()
    driver.events(Bookmark("10", False))
    driver.ended()
    assert driver.status == (ViewState.STALE, 100.0, "VeryShortWatch")
    assert driver.request == Wait(102.0)


# --- expired versions ---


@pytest.mark.parametrize("code", [410, 504])
def test_expired_version_in_stream_leads_to_relist(code: int) -> None:
    driver = watching()
    assert driver.events(refused(code, "Expired"), changed("a", "11")) == [Relisting("Expired")]
    assert not driver.reflector.is_reading
    assert driver.request == FIRST_PAGE
    assert driver.status == (ViewState.CATCHING_UP, 100.0, "Expired")


@pytest.mark.parametrize("status", [410, 504])
def test_expired_version_in_status_leads_to_relist(status: int) -> None:
    driver = watching()
    driver.now += 60.0
    driver.ended()
    assert driver.request == resumes_from("10")
    assert driver.failed(Failure("Expired", "too old", status)) == [Relisting("Expired")]
    assert driver.request == FIRST_PAGE


def test_source_is_streaming_again_after_relist() -> None:
    driver = watching()
    driver.failed(EXPIRED)
    driver.now += 2.0
    driver.page(version="20")
    assert driver.status == (ViewState.STREAMING, 102.0, "")
    assert driver.request == resumes_from("20")


def test_consecutive_relists_are_delayed() -> None:
    driver = watching()
    driver.failed(EXPIRED)
    for delay in (2.0, 4.0, 8.0):
        driver.page()
        driver.opened()
        assert driver.failed(EXPIRED) == [Relisting("Expired")]
        assert driver.request == Wait(driver.now + delay)
        driver.now += delay


def test_consecutive_streaming_lists_are_delayed() -> None:
    driver = watching(STREAMING)
    driver.failed(EXPIRED)
    for delay in (2.0, 4.0, 8.0):
        driver.opened()
        driver.events(Bookmark("10", True))
        driver.events(changed("a", "11"))
        driver.events(refused(410, "Expired"))
        assert driver.request == Wait(driver.now + delay)
        driver.now += delay


@pytest.mark.parametrize(("lasted_s", "waits_s"), [(30.0, 0.0), (2.0, 0.0), (1.5, 0.5)])
def test_consecutive_relist_starts_at_once_if_the_previous_list_is_two_seconds_old(
    lasted_s: float, waits_s: float
) -> None:
    driver = watching()
    driver.failed(EXPIRED)
    driver.page()
    driver.opened()
    driver.now += lasted_s
    driver.failed(EXPIRED)
    assert driver.request == (Wait(driver.now + waits_s) if waits_s else FIRST_PAGE)


def test_list_failure_count_resets_after_a_long_watch() -> None:
    driver = watching()
    for lasted_s in (0.0, 0.0, 30.0):
        driver.now += lasted_s
        driver.failed(EXPIRED)
        if lasted_s:
            break
        driver.now += 8.0
        driver.page()
        driver.opened()
    assert driver.request == FIRST_PAGE
    driver.page()
    driver.opened()
    driver.failed(EXPIRED)
    assert driver.request == Wait(driver.now + 2.0)


TEMPORARY = (401, 403, 407, 408, 425, 429, 503)
REFUSED = sorted({*range(400, 500), 500, 501} - {*TEMPORARY, 410})


@pytest.mark.parametrize("status", REFUSED)
def test_watch_whose_version_is_refused_leads_to_relist(status: int) -> None:
    driver = watching()
    driver.now += 60.0
    driver.ended()
    driver.failed(Failure("NotFound", "the server could not find the requested resource", status))
    assert driver.status == (ViewState.STALE, 160.0, "NotFound")
    driver.now += 1.0
    assert driver.request == FIRST_PAGE


@pytest.mark.parametrize("status", TEMPORARY)
def test_watch_rejected_temporarily_is_resumed_from_same_version(status: int) -> None:
    driver = watching()
    driver.now += 60.0
    driver.ended()
    driver.failed(Failure("No", "no", status))
    driver.now += 1.0
    assert driver.request == resumes_from("10")


def test_error_event_without_version_is_an_interruption() -> None:
    driver = watching()
    driver.events(changed("a", "11"))
    assert driver.events(ErrorStatus(500, "InternalError", "etcdserver: leader changed")) == []
    assert driver.request == resumes_from("11")


@pytest.mark.parametrize(
    "error",
    [
        ErrorStatus(500, "InternalError", "conversion webhook failed"),
        ErrorStatus(0, "Expired", "too old"),
        ErrorStatus(404, "NotFound", "not found"),
    ],
)
def test_fifth_watch_that_an_error_event_ends_at_the_same_version_leads_to_a_list(error: ErrorStatus) -> None:
    driver = watching()
    for _ in range(4):
        assert driver.events(error) == []
        driver.now += 20.0
        assert driver.request == resumes_from("10")
        driver.opened()
    assert driver.events(error) == []
    assert driver.status[2] == error.reason
    driver.now += 20.0
    assert driver.request == FIRST_PAGE


def test_twentieth_watch_that_ends_at_once_at_the_same_version_leads_to_a_list() -> None:
    driver = watching()
    for _ in range(19):
        assert driver.ended() == []
        driver.now += 20.0
        driver.opened()
    driver.ended()
    driver.now += 20.0
    assert driver.request == FIRST_PAGE


def test_watches_whose_connections_are_lost_or_that_make_progress_are_resumed() -> None:
    driver = watching()
    for number in range(20):
        driver.failed(CUT)
        driver.now += 20.0
        driver.opened()
        assert driver.events(changed("a", f"{11 + number}"), ErrorStatus(500, "InternalError", "no"))
        driver.now += 20.0
        assert driver.request == resumes_from(f"{11 + number}")
        driver.opened()


# --- malformed data ---


def test_watch_reopens_from_last_version_after_invalid_data() -> None:
    driver = watching()
    assert driver.events(changed("a", "11"), Undecodable("?"), changed("b", "12")) == [ObjectChanged(seen("a", "11"))]
    assert driver.request == resumes_from("11")


def test_invalid_watch_data_twice_at_the_same_version_leads_to_relist() -> None:
    driver = watching()
    driver.events(changed("a", "11"))
    driver.events(Undecodable("?"))
    driver.opened()
    assert driver.events(Undecodable("?")) == [Relisting("MalformedResponse")]
    assert driver.request == FIRST_PAGE


def test_invalid_watch_data_at_a_later_version_is_retried() -> None:
    driver = watching()
    driver.events(changed("a", "11"))
    driver.events(Undecodable("?"))
    driver.opened()
    findings: list[SourceEvent[Found]] = driver.events(changed("a", "12"), Undecodable("?"))
    assert findings == [ObjectChanged(seen("a", "12"))]
    assert driver.request == Wait(102.0)
    driver.now += 2.0
    assert driver.request == resumes_from("12")


# --- silence ---


def test_silence_without_bookmarks_is_tolerated_until_server_timeout() -> None:
    driver = watching()
    assert driver.request == ReadWatch(100.0 + TIMEOUT_S + 10.0)
    driver.now += 100.0
    driver.events(changed("a", "11"))
    assert driver.request == ReadWatch(100.0 + TIMEOUT_S + 10.0)
    driver.now = 350.0
    assert driver.silent() == []
    assert driver.request == resumes_from("11")
    assert driver.status[0] is ViewState.STREAMING


def test_silence_of_ninety_seconds_with_bookmarks_ends_watch() -> None:
    driver = watching()
    driver.now += 60.0
    driver.events(Bookmark("15", False))
    assert driver.request == ReadWatch(250.0)
    driver.now += 90.0
    assert driver.silent() == []
    assert driver.request == resumes_from("15")
    assert driver.status == (ViewState.CATCHING_UP, 250.0, "Silence")
    driver.opened()
    assert driver.status == (ViewState.STREAMING, 250.0, "")


def test_ninety_seconds_of_silence_of_a_resumed_watch_with_bookmarks_lead_to_relist() -> None:
    driver = watching()
    driver.events(Bookmark("15", False))
    driver.now += 60.0
    driver.ended()
    driver.opened()
    assert driver.request == ReadWatch(250.0)
    driver.now += 90.0
    assert driver.silent() == [Relisting("Silence")]
    assert driver.request == FIRST_PAGE
    assert driver.status == (ViewState.CATCHING_UP, 250.0, "Silence")


def cut() -> ReflectorDriver:
    """Return a driver at the time of its next attempt, after the connection of a watch without bookmarks was lost."""
    driver = watching()
    driver.failed(CUT)
    assert isinstance(driver.request, Wait)
    driver.now = driver.request.until
    assert driver.request == resumes_from("10")
    return driver


def test_ninety_seconds_of_silence_of_a_resumed_watch_without_bookmarks_lead_to_relist() -> None:
    driver = cut()
    driver.opened()
    assert driver.request == ReadWatch(driver.now + 90.0)
    driver.now += 90.0
    assert driver.silent() == [Relisting("Silence")]
    assert driver.request == FIRST_PAGE


def test_silent_watch_without_bookmarks_that_sent_a_change_is_kept() -> None:
    driver = cut()
    driver.opened()
    driver.events(changed("a", "11"))
    assert driver.request == ReadWatch(driver.now + TIMEOUT_S + 10.0)


def test_initial_events_end_bookmark_shortens_watch_silence_timeout() -> None:
    assert watching(STREAMING).request == ReadWatch(190.0)


def test_failed_list_while_catching_up_makes_source_stale_since_first_failure() -> None:
    driver = watching()
    driver.failed(EXPIRED)
    driver.now += 5.0
    driver.page(version="20", then="t1")
    driver.failed(EXPIRED)
    assert driver.status == (ViewState.CATCHING_UP, 100.0, "Expired")
    driver.page(version="20", then="t1")
    driver.failed(UNAVAILABLE)
    assert driver.status == (ViewState.STALE, 105.0, "ServerError")


def test_catching_up_state_after_a_complete_list_has_a_new_start_time() -> None:
    driver = watching()
    driver.failed(EXPIRED)
    driver.now += 5.0
    driver.page()
    driver.opened()
    driver.now += 1.0
    driver.failed(EXPIRED)
    assert driver.status == (ViewState.CATCHING_UP, 106.0, "Expired")


# --- invalid calls by a driver ---


def test_reporting_a_failure_without_a_request_in_flight_raises() -> None:
    driver = ReflectorDriver()
    driver.failed()
    with pytest.raises(AssertionError, match="without a request in flight"):
        driver.failed()


@pytest.mark.parametrize("policy", [PAGES, STREAMING])
def test_f5_watch_event_received_byte_by_byte_is_abandoned_after_30_seconds(policy: ReflectorPolicy) -> None:
    driver = watching(policy)
    driver.reflector.events([END_OF_LIST], driver.now)
    driver.reflector.events([changed("a", "11")], driver.now, partial=True)
    for _ in range(29):
        driver.now += 1.0
        driver.reflector.events([], driver.now, partial=True)
    assert driver.request == ReadWatch(driver.now + 1.0)
    driver.now += 1.0
    driver.silent()
    assert driver.request == resumes_from("11")


def test_f5_each_watch_event_has_its_own_deadline() -> None:
    driver = watching()
    for version in range(11, 20):
        driver.now += 20.0
        driver.reflector.events([changed("a", str(version))], driver.now, partial=True)
    assert driver.request == ReadWatch(driver.now + 30.0)
    driver.events(changed("a", "20"))
    assert driver.request == ReadWatch(100.0 + 240.0 + 10.0)


def test_f5_streaming_list_received_byte_by_byte_is_abandoned_after_30_seconds() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    driver.reflector.events([], driver.now, partial=True)
    driver.now += 10.0
    driver.reflector.events([], driver.now, partial=True)
    driver.now += 10.0
    driver.reflector.events([], driver.now, partial=True)
    driver.now += 10.0
    driver.silent()
    assert driver.status == (ViewState.STALE, driver.now, "SlowLine")


def test_server_that_rejects_the_version_it_listed_is_still_trusted_for_reads() -> None:
    driver = watching()
    driver.now += 60.0
    driver.ended()
    driver.failed(EXPIRED)
    driver.page(version="20")
    driver.failed(EXPIRED)
    assert driver.status[0] is ViewState.CATCHING_UP
    assert driver.reflector.trusted_from == -math.inf


def test_server_that_rejects_a_version_is_not_trusted_for_reads_before_relist() -> None:
    driver = watching()
    driver.now += 60.0
    driver.ended()
    driver.failed(EXPIRED)
    assert driver.reflector.trusted_from == math.inf
