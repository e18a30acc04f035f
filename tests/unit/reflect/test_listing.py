"""From nothing to a complete list: page by page, or as a watch that begins with it."""

import pytest

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
from milo_kube.reflect.source_status import SourceState, SourceStatus
from milo_kube.reflect.wire import Bookmark, ListPage, ObjectRemoved, Undecodable, UnknownEvent
from tests.unit.reflect.life import (
    CUT,
    END_OF_LIST,
    EXPIRED,
    PAGES,
    START,
    STREAMING,
    TIMEOUT_S,
    UNAVAILABLE,
    Life,
    changed,
    listed,
    refused,
)
from tests.unit.reflect.lines import seen

FIRST_PAGE = FetchPage("", 5000)
ALL_AT_ONCE = FetchPage("", 0)
STREAMED_LIST = OpenWatch("", TIMEOUT_S)


def test_source_is_catching_up_before_first_read() -> None:
    assert Life().reflector.status == SourceStatus(
        SourceState.CATCHING_UP, START, "Starting", "the first complete list is being read"
    )
    assert not Life().reflector.synced


def test_list_is_read_page_by_page() -> None:
    life = Life(ReflectorPolicy(streaming_lists=False, page_size=2))
    assert life.request == FetchPage("", 2)
    assert life.page(seen("a"), seen("b"), then="t1") == [ListStarted(), Listed(seen("a")), Listed(seen("b"))]
    assert life.request == FetchPage("t1", 2)
    assert not life.reflector.synced
    assert life.page(seen("c"), version="12") == [Listed(seen("c")), ListEnded()]
    assert life.request == OpenWatch("12", TIMEOUT_S)
    assert life.reflector.synced


def test_page_is_read_when_its_last_object_was_consumed() -> None:
    life = Life()
    findings = life.reflector.listed(ListPage("10", ""), [seen("a")], life.now)
    assert next(findings) == ListStarted()
    assert life.request == FIRST_PAGE
    assert list(findings) == [Listed(seen("a")), ListEnded()]
    assert life.request == OpenWatch("10", TIMEOUT_S)


def test_complete_list_makes_source_current() -> None:
    life = Life()
    life.now = 105.0
    life.page()
    assert life.reflector.status == SourceStatus(SourceState.STREAMING, 105.0, last_contact=105.0)


def test_list_without_version_is_repeated_after_interval() -> None:
    life = Life()
    assert life.page(seen("a"), version="") == [ListStarted(), Listed(seen("a")), ListEnded()]
    assert life.request == Wait(START + 8.0)
    life.now += 8.0
    assert life.request == FIRST_PAGE


def test_failed_page_restarts_list_after_backoff() -> None:
    life = Life()
    life.page(then="t1")
    assert life.failed() == []
    assert life.request == Wait(START + 1.0)
    assert life.status == (SourceState.STALE, START, "ServerError")
    life.now += 1.0
    assert life.request == FIRST_PAGE
    assert life.page(seen("a"))[0] == ListStarted()


def test_response_time_counts_toward_backoff() -> None:
    life = Life()
    for delay in (1.0, 2.0, 4.0, 8.0):
        assert life.request == FIRST_PAGE
        life.now += 1.5
        life.failed()
        assert life.request == Wait(life.now + max(delay - 1.5, 1.0))
        life.now += delay


def test_expired_list_restarts_at_once() -> None:
    life = Life()
    life.page(then="t1")
    assert life.failed(EXPIRED) == [Relisting("Expired")]
    assert life.request == FIRST_PAGE


def test_list_that_expires_twice_is_requested_in_one_page() -> None:
    life = Life()
    for _ in range(2):
        life.page(then="t1")
        life.failed(EXPIRED)
    assert life.request == ALL_AT_ONCE
    life.page()
    life.opened()
    life.now += 60
    life.failed(EXPIRED)
    assert life.request == FIRST_PAGE, "the next list begins with pages again"
    life.page(then="t1")
    life.failed(EXPIRED)
    assert life.request == FIRST_PAGE


def test_expired_first_page_waits_for_backoff() -> None:
    life = Life()
    life.failed(EXPIRED)
    assert life.request == Wait(START + 1.0)


def test_streaming_list_starts_as_a_watch() -> None:
    life = Life(STREAMING)
    assert life.request == STREAMED_LIST
    assert life.opened() == [ListStarted()]
    assert life.request == ReadWatch(START + 15.0)
    life.now += 10.0
    assert life.events(changed("a", "3"), changed("b", "4")) == [Listed(seen("a", "3")), Listed(seen("b", "4"))]
    assert life.request == ReadWatch(START + 25.0), "each chunk shows that it goes on"
    assert not life.reflector.synced
    assert life.events(Bookmark("5", False), END_OF_LIST, changed("c", "11")) == [
        ListEnded(),
        ObjectChanged(seen("c", "11")),
    ]
    assert life.reflector.synced
    assert life.status == (SourceState.STREAMING, START + 10.0, "")


def test_streaming_list_continues_as_watch_from_its_version() -> None:
    life = listed(STREAMING)
    life.now += 60
    assert life.ended() == []
    assert life.request == OpenWatch("10", TIMEOUT_S)


def test_object_deleted_during_streaming_list_is_not_listed() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.events(changed("a", "3"), ObjectRemoved("a", "uid-a", "4")) == [Listed(seen("a", "3")), Unlisted("a")]


def test_streaming_list_without_version_is_repeated_after_interval() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.events(Bookmark("", True), changed("a", "3")) == [ListEnded()]
    assert not life.reflector.is_reading
    assert life.request == Wait(START + 8.0)
    life.now += 8.0
    assert life.request == STREAMED_LIST


def test_invalid_event_in_streaming_list_is_ignored() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.events(UnknownEvent("what?"), changed("a", "3")) == [EventIgnored("what?"), Listed(seen("a", "3"))]


@pytest.mark.parametrize("status", [400, 403, 422])
def test_server_without_streaming_lists_is_listed_in_pages(status: int) -> None:
    life = Life(STREAMING)
    assert life.failed(Failure("Invalid", "sendInitialEvents is forbidden", status)) == []
    assert life.request == FIRST_PAGE
    assert life.status[0] is SourceState.CATCHING_UP


def test_streaming_list_is_requested_again_for_next_list() -> None:
    life = Life(STREAMING)
    life.failed(Failure("Forbidden", "no", 403))
    life.page()
    life.opened()
    life.failed(EXPIRED)
    assert life.request == STREAMED_LIST


def test_server_building_its_cache_is_listed_in_pages_meanwhile() -> None:
    life = Life(STREAMING)
    life.failed(Failure("TooManyRequests", "storage is (re)initializing", 429, 1.0))
    assert life.request == FIRST_PAGE


def test_retry_after_of_busy_server_is_respected_after_first_view() -> None:
    life = listed(STREAMING)
    life.now += 60
    life.failed(EXPIRED)
    life.request  # noqa: B018 - to be asked is what makes it go on
    life.failed(Failure("TooManyRequests", "storage is (re)initializing", 429, 3.0))
    assert life.request == Wait(life.now + 3.0)
    life.now += 3.0
    assert life.request == STREAMED_LIST


def test_stalled_streaming_list_falls_back_to_pages() -> None:
    life = Life(STREAMING)
    life.opened()
    life.events(changed("a", "3"))
    life.now += 15.0
    assert life.silent() == [Relisting("StreamingListUnsupported")]
    assert life.request == FIRST_PAGE
    life.page()
    life.opened()
    life.failed(EXPIRED)
    assert life.request == FIRST_PAGE, "it is not asked again"


def test_interrupted_streaming_list_restarts_after_backoff() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.ended() == []
    assert life.status == (SourceState.STALE, START, "ListCut")
    assert life.request == Wait(START + 1.0)
    life.now += 1.0
    assert life.request == STREAMED_LIST


@pytest.mark.parametrize("failure", [CUT, Failure("MalformedResponse", "not an event")])
def test_streaming_list_that_fails_twice_falls_back_to_pages(failure: Failure) -> None:
    life = Life(STREAMING)
    life.opened()
    life.failed(failure)
    life.now += 1.0
    life.opened()
    assert life.failed(failure) == []
    assert life.request == FIRST_PAGE


def test_unreachable_server_gets_no_paged_list() -> None:
    life = Life(STREAMING)
    for delay in (1.0, 2.0, 4.0):
        assert life.request == STREAMED_LIST
        life.failed(UNAVAILABLE)
        assert life.request == Wait(life.now + delay)
        life.now += delay


def test_junk_within_a_streaming_list_ends_it() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.events(changed("a", "3"), Undecodable("not an event"), END_OF_LIST) == [Listed(seen("a", "3"))]
    assert life.request == Wait(START + 1.0)
    assert not life.reflector.synced


def test_error_event_ends_streaming_list() -> None:
    life = Life(STREAMING)
    life.opened()
    life.events(refused(504))
    assert life.status == (SourceState.STALE, START, "WatchError")
    assert life.request == Wait(START + 1.0)


def test_streaming_lists_can_be_switched_off() -> None:
    assert Life(PAGES).request == FIRST_PAGE
    assert Life(STREAMING).request == STREAMED_LIST


@pytest.mark.parametrize(
    ("asked_s", "waited_s"), [(3.0, 3.0), (0.0, 0.1), (-5.0, 0.1), (1e9, 300.0), (None, 1.0), (0.5, 0.5)]
)
def test_retry_after_is_respected_within_limits(asked_s: float | None, waited_s: float) -> None:
    life = Life()
    life.failed(Failure("TooManyRequests", "429", 429, asked_s))
    assert life.request == Wait(START + waited_s)


def test_repeated_retry_after_is_limited() -> None:
    life = Life()
    waits = []
    for _ in range(32):
        assert life.request == FIRST_PAGE
        life.failed(Failure("TooManyRequests", "429", 429, 0.5))
        request = life.request
        assert isinstance(request, Wait)
        waits.append(request.until - life.now)
        life.now = request.until
    assert waits == [0.5] * 30 + [8.0] * 2


def test_waits_are_drawn_so_that_many_daemons_do_not_come_back_at_once() -> None:
    reflector = Reflector(PAGES, lambda: 0.5, START)
    reflector.failed(UNAVAILABLE, START)
    assert reflector.next(START) == Wait(START + 1.5)
    reflector = Reflector(PAGES, lambda: 0.5, START)
    reflector.failed(Failure("TooManyRequests", "429", 429, 3.0), START)
    assert reflector.next(START) == Wait(START + 3.5)


def test_watch_timeouts_are_randomized() -> None:
    reflector = Reflector(STREAMING, lambda: 0.5, START)
    assert reflector.next(START) == OpenWatch("", 360)


def test_source_with_restored_state_is_stale_until_first_answer() -> None:
    restored = SourceStatus(SourceState.STALE, START - 60.0, "Restored", "as last known")
    reflector = Reflector(PAGES, lambda: 0.0, START, restored)
    assert reflector.status == restored
    for _ in reflector.listed(ListPage("10", ""), (), START):
        pass
    assert reflector.status.state is SourceState.STREAMING
