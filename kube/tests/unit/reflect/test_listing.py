"""The initial list, in pages or as a streaming list."""

from typing import Any

import pytest

from kube.tests.unit.reflect.lines import Found, seen
from kube.tests.unit.reflect.reflector_driver import (
    CUT,
    END_OF_LIST,
    EXPIRED,
    PAGES,
    START,
    STREAMING,
    TIMEOUT_S,
    UNAVAILABLE,
    ReflectorDriver,
    changed,
    listed,
    refused,
)
from milo_kube.list_pages import MAX_PAGES
from milo_kube.reflect.messages import (
    EventIgnored,
    Failure,
    FetchPage,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    OpenWatch,
    ReadWatch,
    Relisting,
    Unlisted,
    Wait,
)
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reflect.wire import (
    Bookmark,
    ErrorStatus,
    ListPage,
    ObjectRemoved,
    Undecodable,
    UnknownEvent,
    WatchEvent,
)

FIRST_PAGE = FetchPage("", 5000)
ALL_AT_ONCE = FetchPage("", 0)
STREAMED_LIST = OpenWatch("", TIMEOUT_S)
TOO_LARGE = Failure("ResponseTooLarge", "the response has more than 5 bytes")


def test_source_is_catching_up_before_first_read() -> None:
    assert ReflectorDriver().reflector.status == ViewStatus(
        ViewState.CATCHING_UP, START, "Starting", "the first complete list is being read"
    )
    assert not ReflectorDriver().reflector.synced


def test_listed_object_without_a_name_is_reported() -> None:
    ignored = EventIgnored("a listed object has no name")
    assert ReflectorDriver().page(seen("a"), None, then="t1") == [ListStarted(), Listed(seen("a")), ignored]


def test_page_that_is_too_large_is_requested_with_fewer_objects() -> None:
    driver = ReflectorDriver(ReflectorPolicy(streaming_lists=False, page_size=50))
    assert driver.page(seen("a"), then="t1") == [ListStarted(), Listed(seen("a"))]
    for size in (50, 10, 2, 1):
        assert driver.request == FetchPage("t1", size)
        assert driver.failed(TOO_LARGE) == []
    assert driver.status == (ViewState.STALE, START, "ResponseTooLarge")
    assert isinstance(driver.request, Wait)


def test_list_after_pages_that_were_too_large_has_the_smaller_pages() -> None:
    driver = ReflectorDriver(ReflectorPolicy(streaming_lists=False, page_size=50))
    driver.failed(TOO_LARGE)
    driver.page(seen("a"), version="12")
    driver.opened()
    driver.events(ErrorStatus(410, "Expired", "too old"))
    assert driver.request == FetchPage("", 10)


def test_pages_have_more_objects_again_after_some_that_were_not_too_large() -> None:
    """20 objects of 1 MiB before 9,000 small ones were listed in more pages than are read."""
    driver = ReflectorDriver(ReflectorPolicy(streaming_lists=False, page_size=500))
    objects, pages = [1 << 20] * 20 + [1_000] * 9_000, 0
    while objects:
        request = driver.request
        assert isinstance(request, FetchPage)
        page = objects[: request.limit]
        if sum(page) > 16 << 20:
            assert driver.failed(TOO_LARGE) == []
            continue
        pages += 1
        del objects[: request.limit]
        driver.page(seen("a"), **({"then": "t1"} if objects else {"version": "12"}))
    assert driver.reflector.synced
    assert pages < 50
    driver.opened()
    driver.events(ErrorStatus(410, "Expired", "too old"))
    assert driver.request == FetchPage("", 500)


def test_list_in_one_response_that_is_too_large_makes_the_source_stale() -> None:
    driver = ReflectorDriver()
    for _ in range(2):
        driver.page(then="t1")
        driver.failed(EXPIRED)
    assert driver.request == ALL_AT_ONCE
    driver.failed(TOO_LARGE)
    assert driver.status == (ViewState.STALE, START, "ResponseTooLarge")


def test_list_is_read_page_by_page() -> None:
    driver = ReflectorDriver(ReflectorPolicy(streaming_lists=False, page_size=2))
    assert driver.request == FetchPage("", 2)
    assert driver.page(seen("a"), seen("b"), then="t1") == [ListStarted(), Listed(seen("a")), Listed(seen("b"))]
    assert driver.request == FetchPage("t1", 2)
    assert not driver.reflector.synced
    assert driver.page(seen("c"), version="12") == [Listed(seen("c")), ListEnded(version="12")]
    assert driver.request == OpenWatch("12", TIMEOUT_S)
    assert driver.reflector.synced


@pytest.mark.parametrize("observations", [[], [seen("a")]], ids=["empty", "same object"])
def test_list_without_end_makes_source_stale_for_five_minutes(observations: list[Any]) -> None:
    driver = ReflectorDriver()
    pages = 0
    while driver.status[0] is not ViewState.STALE:
        assert driver.request == FetchPage("t" if pages else "", 5000)
        driver.page(*observations, then="t")
        pages += 1
    assert (pages, driver.status[2]) == (MAX_PAGES, "MalformedResponse")
    assert "the list did not end in 2000 pages and 0 s" in driver.reflector.status.message
    assert not driver.reflector.synced
    assert driver.request == Wait(START + 300.0)
    driver.now += 300.0
    assert driver.request == FIRST_PAGE


def test_list_that_takes_longer_than_ten_minutes_makes_source_stale() -> None:
    driver = ReflectorDriver()
    for _ in range(10):
        driver.page(then="t")
        assert driver.request == FetchPage("t", 5000)
        driver.now += 60.0
    driver.page(seen("a"), then="t")
    assert driver.status == (ViewState.STALE, START + 600.0, "MalformedResponse")


def test_next_request_waits_until_all_objects_of_the_page_are_consumed() -> None:
    driver = ReflectorDriver()
    findings = driver.reflector.listed(ListPage("10", ""), [seen("a")], driver.now)
    assert next(findings) == ListStarted()
    assert driver.request == FIRST_PAGE
    assert list(findings) == [Listed(seen("a")), ListEnded(version="10")]
    assert driver.request == OpenWatch("10", TIMEOUT_S)


def test_complete_list_makes_source_streaming() -> None:
    driver = ReflectorDriver()
    driver.now = 105.0
    driver.page()
    assert driver.reflector.status == ViewStatus(ViewState.STREAMING, 105.0, last_contact=105.0)


def test_list_without_version_is_repeated_after_interval() -> None:
    driver = ReflectorDriver()
    assert driver.page(seen("a"), version="") == [ListStarted(), Listed(seen("a")), ListEnded()]
    assert driver.request == Wait(START + 8.0)
    driver.now += 8.0
    assert driver.request == FIRST_PAGE


def test_failed_page_restarts_list_after_backoff() -> None:
    driver = ReflectorDriver()
    driver.page(then="t1")
    assert driver.failed() == []
    assert driver.request == Wait(START + 1.0)
    assert driver.status == (ViewState.STALE, START, "ServerError")
    driver.now += 1.0
    assert driver.request == FIRST_PAGE
    assert driver.page(seen("a"))[0] == ListStarted()


def test_list_response_time_counts_toward_backoff() -> None:
    driver = ReflectorDriver()
    for delay in (1.0, 2.0, 4.0, 8.0):
        assert driver.request == FIRST_PAGE
        driver.now += 1.5
        driver.failed()
        assert driver.request == Wait(driver.now + max(delay - 1.5, 1.0))
        driver.now += delay


def test_expired_list_restarts_at_once() -> None:
    driver = ReflectorDriver()
    driver.page(then="t1")
    assert driver.failed(EXPIRED) == [Relisting("Expired")]
    assert driver.request == FIRST_PAGE


def test_list_that_expires_twice_is_requested_in_one_page() -> None:
    driver = ReflectorDriver()
    for _ in range(2):
        driver.page(then="t1")
        driver.failed(EXPIRED)
    assert driver.request == ALL_AT_ONCE
    driver.page()
    driver.opened()
    driver.now += 60
    driver.failed(EXPIRED)
    assert driver.request == FIRST_PAGE, "the next list is paged again"
    driver.page(then="t1")
    driver.failed(EXPIRED)
    assert driver.request == FIRST_PAGE


def test_list_that_expires_twice_and_is_too_large_for_one_page_is_requested_in_pages_after_backoff() -> None:
    driver = ReflectorDriver()
    for _ in range(2):
        driver.page(then="t1")
        driver.failed(EXPIRED)
    assert driver.request == ALL_AT_ONCE
    driver.failed(TOO_LARGE)
    assert driver.request == Wait(START + 4.0)
    driver.now += 4.0
    assert driver.request == FIRST_PAGE


def test_list_in_one_page_that_is_continued_and_expires_waits_for_backoff() -> None:
    """A server with a maximum page size, of whose replicas each knows its own tokens, was asked
    without a pause."""
    driver = ReflectorDriver()
    for _ in range(2):
        driver.page(then="t1")
        driver.failed(EXPIRED)
    assert driver.request == ALL_AT_ONCE
    driver.page(then="t1")
    driver.failed(EXPIRED)
    assert driver.request == Wait(START + 4.0)
    assert driver.reflector.status.state is ViewState.STALE
    driver.now += 4.0
    assert driver.request == ALL_AT_ONCE


def test_expired_first_page_waits_for_backoff() -> None:
    driver = ReflectorDriver()
    driver.failed(EXPIRED)
    assert driver.request == Wait(START + 1.0)


def test_streaming_list_starts_as_a_watch() -> None:
    driver = ReflectorDriver(STREAMING)
    assert driver.request == STREAMED_LIST
    assert driver.opened() == [ListStarted()]
    assert driver.request == ReadWatch(START + 15.0)
    driver.now += 10.0
    assert driver.events(changed("a", "3"), changed("b", "4")) == [Listed(seen("a", "3")), Listed(seen("b", "4"))]
    assert driver.request == ReadWatch(START + 25.0), "each chunk restarts the timeout"
    assert not driver.reflector.synced
    assert driver.events(Bookmark("5", False), END_OF_LIST, changed("c", "11")) == [
        ListEnded(version="10"),
        ObjectChanged(seen("c", "11")),
    ]
    assert driver.reflector.synced
    assert driver.status == (ViewState.STREAMING, START + 10.0, "")


def test_streaming_list_continues_as_watch_from_its_version() -> None:
    driver = listed(STREAMING)
    driver.now += 60
    assert driver.ended() == []
    assert driver.request == OpenWatch("10", TIMEOUT_S)


def test_object_deleted_during_streaming_list_is_not_listed() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    assert driver.events(changed("a", "3"), ObjectRemoved("a", "uid-a", "4")) == [Listed(seen("a", "3")), Unlisted("a")]


def test_streaming_list_without_version_is_repeated_after_interval() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    assert driver.events(Bookmark("", True), changed("a", "3")) == [ListEnded()]
    assert not driver.reflector.is_reading
    assert driver.request == Wait(START + 8.0)
    driver.now += 8.0
    assert driver.request == STREAMED_LIST


def test_invalid_event_in_streaming_list_is_ignored() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    assert driver.events(UnknownEvent("what?"), changed("a", "3")) == [EventIgnored("what?"), Listed(seen("a", "3"))]


@pytest.mark.parametrize("status", [400, 403, 404, 405, 406, 410, 422, 500, 501, 504])
def test_server_without_streaming_lists_is_listed_in_pages(status: int) -> None:
    driver = ReflectorDriver(STREAMING)
    assert driver.failed(Failure("Invalid", "sendInitialEvents is forbidden", status)) == []
    assert driver.request == FIRST_PAGE
    assert driver.status[0] is ViewState.CATCHING_UP


def test_streaming_list_is_requested_again_for_next_list() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.failed(Failure("Forbidden", "no", 403))
    driver.page()
    driver.opened()
    driver.failed(EXPIRED)
    assert driver.request == STREAMED_LIST


def test_server_whose_watch_cache_is_not_ready_is_listed_in_pages() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.failed(Failure("TooManyRequests", "storage is (re)initializing", 429, 1.0))
    assert driver.request == FIRST_PAGE


def test_retry_after_of_busy_server_is_respected_after_first_complete_list() -> None:
    driver = listed(STREAMING)
    driver.now += 60
    driver.failed(EXPIRED)
    driver.request  # noqa: B018 - reading the property advances the reflector
    driver.failed(Failure("TooManyRequests", "storage is (re)initializing", 429, 3.0))
    assert driver.request == Wait(driver.now + 3.0)
    driver.now += 3.0
    assert driver.request == STREAMED_LIST


def test_streaming_list_without_a_response_falls_back_to_pages() -> None:
    driver = ReflectorDriver(STREAMING)
    assert driver.request == STREAMED_LIST
    assert driver.reflector.silent(START + 15.0) == []
    assert driver.request == FIRST_PAGE


def test_stalled_streaming_list_falls_back_to_pages() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    driver.events(changed("a", "3"))
    driver.now += 15.0
    assert driver.silent() == [Relisting("StreamingListUnsupported")]
    assert driver.request == FIRST_PAGE
    driver.page()
    driver.opened()
    driver.failed(EXPIRED)
    assert driver.request == FIRST_PAGE, "streaming is not requested again"


@pytest.mark.parametrize("event", [changed("a", "3"), Bookmark("4", False)])
def test_streaming_list_that_goes_on_for_ten_minutes_falls_back_to_pages(event: WatchEvent[Found]) -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    for _ in range(59):
        driver.now += 10.0
        driver.events(event)
    assert driver.request == ReadWatch(START + 600.0)
    driver.now += 10.0
    assert driver.events(event)[-1] == Relisting("StreamingListUnsupported")
    assert driver.request == FIRST_PAGE


def test_interrupted_streaming_list_restarts_after_backoff() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    assert driver.ended() == []
    assert driver.status == (ViewState.STALE, START, "ListCut")
    assert driver.request == Wait(START + 1.0)
    driver.now += 1.0
    assert driver.request == STREAMED_LIST


@pytest.mark.parametrize("failure", [CUT, Failure("MalformedResponse", "not an event")])
def test_streaming_list_that_fails_twice_falls_back_to_pages(failure: Failure) -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    driver.failed(failure)
    driver.now += 1.0
    driver.opened()
    assert driver.failed(failure) == []
    assert driver.request == FIRST_PAGE


def test_streaming_list_does_not_fall_back_to_pages_while_server_is_unreachable() -> None:
    driver = ReflectorDriver(STREAMING)
    for delay in (1.0, 2.0, 4.0):
        assert driver.request == STREAMED_LIST
        driver.failed(UNAVAILABLE)
        assert driver.request == Wait(driver.now + delay)
        driver.now += delay


def test_invalid_data_ends_streaming_list() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    assert driver.events(changed("a", "3"), Undecodable("not an event"), END_OF_LIST) == [Listed(seen("a", "3"))]
    assert driver.request == Wait(START + 1.0)
    assert not driver.reflector.synced


def test_error_event_ends_streaming_list() -> None:
    driver = ReflectorDriver(STREAMING)
    driver.opened()
    driver.events(refused(504))
    assert driver.status == (ViewState.STALE, START, "WatchError")
    assert driver.request == Wait(START + 1.0)


def test_streaming_lists_can_be_disabled() -> None:
    assert ReflectorDriver(PAGES).request == FIRST_PAGE
    assert ReflectorDriver(STREAMING).request == STREAMED_LIST


@pytest.mark.parametrize(
    ("asked_s", "waited_s"), [(3.0, 3.0), (0.0, 0.1), (-5.0, 0.1), (1e9, 300.0), (None, 1.0), (0.5, 0.5)]
)
def test_retry_after_is_respected_within_limits(asked_s: float | None, waited_s: float) -> None:
    driver = ReflectorDriver()
    driver.failed(Failure("TooManyRequests", "429", 429, asked_s))
    assert driver.request == Wait(START + waited_s)


def test_repeated_retry_after_is_limited() -> None:
    driver = ReflectorDriver()
    waits = []
    for _ in range(32):
        assert driver.request == FIRST_PAGE
        driver.failed(Failure("TooManyRequests", "429", 429, 0.5))
        request = driver.request
        assert isinstance(request, Wait)
        waits.append(request.until - driver.now)
        driver.now = request.until
    assert waits == [0.5] * 30 + [8.0] * 2


def test_retries_have_jitter() -> None:
    reflector = Reflector(PAGES, lambda: 0.5, START)
    reflector.failed(UNAVAILABLE, START)
    assert reflector.next(START) == Wait(START + 1.5)
    reflector = Reflector(PAGES, lambda: 0.5, START)
    reflector.failed(Failure("TooManyRequests", "429", 429, 3.0), START)
    assert reflector.next(START) == Wait(START + 3.5)


def test_watch_timeouts_are_randomized() -> None:
    reflector = Reflector(STREAMING, lambda: 0.5, START)
    assert reflector.next(START) == OpenWatch("", 360)


def test_source_with_restored_state_is_stale_until_first_response() -> None:
    restored = ViewStatus(ViewState.STALE, START - 60.0, "Restored", "as last known")
    reflector = Reflector(PAGES, lambda: 0.0, START, restored)
    assert reflector.status == restored
    for _ in reflector.listed(ListPage("10", ""), (), START):
        pass
    assert reflector.status.state is ViewState.STREAMING
