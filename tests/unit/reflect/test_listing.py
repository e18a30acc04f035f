"""From nothing to a complete list: page by page, or as a watch that begins with it."""

import pytest

from milo_discoveryd.model.source import SourceState, SourceStatus
from milo_discoveryd.reflect.messages import (
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
from milo_discoveryd.reflect.reflector import Reflector, ReflectorPolicy
from milo_discoveryd.reflect.wire import Bookmark, ListPage, ObjectRemoved, Undecodable, UnknownEvent
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


def test_before_anything_was_read_the_source_is_being_caught_up_with() -> None:
    assert Life().reflector.status == SourceStatus(
        SourceState.CATCHING_UP, START, "Starting", "the first complete list is being read"
    )
    assert not Life().reflector.synced


def test_a_list_is_read_page_by_page() -> None:
    life = Life(ReflectorPolicy(streaming_lists=False, page_size=2))
    assert life.request == FetchPage("", 2)
    assert life.page(seen("a"), seen("b"), then="t1") == [ListStarted(), Listed(seen("a")), Listed(seen("b"))]
    assert life.request == FetchPage("t1", 2)
    assert not life.reflector.synced
    assert life.page(seen("c"), version="12") == [Listed(seen("c")), ListEnded()]
    assert life.request == OpenWatch("12", TIMEOUT_S)
    assert life.reflector.synced


def test_a_page_counts_as_read_when_its_last_finding_was_taken() -> None:
    life = Life()
    findings = life.reflector.listed(ListPage("10", ""), [seen("a")], life.now)
    assert next(findings) == ListStarted()
    assert life.request == FIRST_PAGE
    assert list(findings) == [Listed(seen("a")), ListEnded()]
    assert life.request == OpenWatch("10", TIMEOUT_S)


def test_a_complete_list_makes_the_view_current() -> None:
    life = Life()
    life.now = 105.0
    life.page()
    assert life.reflector.status == SourceStatus(SourceState.STREAMING, 105.0, last_contact=105.0)


def test_a_list_without_a_version_is_read_again_after_a_while() -> None:
    life = Life()
    assert life.page(seen("a"), version="") == [ListStarted(), Listed(seen("a")), ListEnded()]
    assert life.request == Wait(START + 8.0)
    life.now += 8.0
    assert life.request == FIRST_PAGE


def test_a_page_that_fails_begins_the_list_again_after_a_wait() -> None:
    life = Life()
    life.page(then="t1")
    assert life.failed() == []
    assert life.request == Wait(START + 1.0)
    assert life.status == (SourceState.STALE, START, "ServerError")
    life.now += 1.0
    assert life.request == FIRST_PAGE
    assert life.page(seen("a"))[0] == ListStarted()


def test_the_time_that_an_answer_was_waited_for_counts_as_waited() -> None:
    life = Life()
    for delay in (1.0, 2.0, 4.0, 8.0):
        assert life.request == FIRST_PAGE
        life.now += 1.5
        life.failed()
        assert life.request == Wait(life.now + max(delay - 1.5, 1.0))
        life.now += delay


def test_a_list_that_outlives_its_version_is_begun_again_at_once() -> None:
    life = Life()
    life.page(then="t1")
    assert life.failed(EXPIRED) == [Relisting("Expired")]
    assert life.request == FIRST_PAGE


def test_a_list_that_outlives_its_version_twice_is_read_in_one_piece() -> None:
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


def test_a_first_page_that_is_expired_waits_like_any_failure() -> None:
    life = Life()
    life.failed(EXPIRED)
    assert life.request == Wait(START + 1.0)


def test_a_list_may_come_as_the_beginning_of_a_watch() -> None:
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


def test_a_streaming_list_goes_on_as_a_watch_from_its_version() -> None:
    life = listed(STREAMING)
    life.now += 60
    assert life.ended() == []
    assert life.request == OpenWatch("10", TIMEOUT_S)


def test_an_object_that_goes_while_it_is_being_listed_is_not_on_the_list() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.events(changed("a", "3"), ObjectRemoved("a", "uid-a", "4")) == [Listed(seen("a", "3")), Unlisted("a")]


def test_a_streaming_list_without_a_version_is_read_again_after_a_while() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.events(Bookmark("", True), changed("a", "3")) == [ListEnded()]
    assert not life.reflector.is_reading
    assert life.request == Wait(START + 8.0)
    life.now += 8.0
    assert life.request == STREAMED_LIST


def test_an_odd_event_within_a_list_is_passed_over() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.events(UnknownEvent("what?"), changed("a", "3")) == [EventIgnored("what?"), Listed(seen("a", "3"))]


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_server_that_refuses_streaming_lists_is_asked_for_pages(status: int) -> None:
    life = Life(STREAMING)
    assert life.failed(Failure("Invalid", "sendInitialEvents is forbidden", status)) == []
    assert life.request == FIRST_PAGE
    assert life.status[0] is SourceState.CATCHING_UP


def test_the_next_list_is_asked_for_as_a_stream_again() -> None:
    life = Life(STREAMING)
    life.failed(Failure("Forbidden", "no", 403))
    life.page()
    life.opened()
    life.failed(EXPIRED)
    assert life.request == STREAMED_LIST


def test_a_server_that_is_still_building_its_cache_gives_pages_meanwhile() -> None:
    life = Life(STREAMING)
    life.failed(Failure("TooManyRequests", "storage is (re)initializing", 429, 1.0))
    assert life.request == FIRST_PAGE


def test_once_there_is_a_view_a_busy_server_is_given_the_time_it_asks_for() -> None:
    life = listed(STREAMING)
    life.now += 60
    life.failed(EXPIRED)
    life.request  # noqa: B018 - to be asked is what makes it go on
    life.failed(Failure("TooManyRequests", "storage is (re)initializing", 429, 3.0))
    assert life.request == Wait(life.now + 3.0)
    life.now += 3.0
    assert life.request == STREAMED_LIST


def test_a_streaming_list_that_stops_is_a_server_that_does_not_know_them() -> None:
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


def test_a_streaming_list_that_is_cut_is_begun_again_after_a_wait() -> None:
    life = Life(STREAMING)
    life.opened()
    assert life.ended() == []
    assert life.status == (SourceState.STALE, START, "ListCut")
    assert life.request == Wait(START + 1.0)
    life.now += 1.0
    assert life.request == STREAMED_LIST


@pytest.mark.parametrize("failure", [CUT, Failure("MalformedResponse", "not an event")])
def test_a_streaming_list_that_breaks_twice_gives_way_to_pages(failure: Failure) -> None:
    life = Life(STREAMING)
    life.opened()
    life.failed(failure)
    life.now += 1.0
    life.opened()
    assert life.failed(failure) == []
    assert life.request == FIRST_PAGE


def test_a_server_that_is_not_there_is_not_asked_for_pages_instead() -> None:
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


def test_a_refusal_within_a_streaming_list_ends_it() -> None:
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
def test_the_wait_that_a_server_asks_for_is_obeyed_within_reason(asked_s: float | None, waited_s: float) -> None:
    life = Life()
    life.failed(Failure("TooManyRequests", "429", 429, asked_s))
    assert life.request == Wait(START + waited_s)


def test_a_wait_that_was_asked_for_time_and_again_is_not_believed_for_ever() -> None:
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


def test_watches_are_asked_for_with_different_ends() -> None:
    reflector = Reflector(STREAMING, lambda: 0.5, START)
    assert reflector.next(START) == OpenWatch("", 360)


def test_with_something_to_begin_with_the_source_is_stale_until_it_answers() -> None:
    restored = SourceStatus(SourceState.STALE, START - 60.0, "Restored", "as last known")
    reflector = Reflector(PAGES, lambda: 0.0, START, restored)
    assert reflector.status == restored
    for _ in reflector.listed(ListPage("10", ""), (), START):
        pass
    assert reflector.status.state is SourceState.STREAMING
