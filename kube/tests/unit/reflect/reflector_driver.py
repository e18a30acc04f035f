"""A reflector that a test drives step by step."""

from kube.tests.unit.reflect.lines import Found, seen
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.messages import Failure, FetchPage, OpenWatch, Request, SourceEvent
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.view_status import ViewState
from milo_kube.reflect.wire import Bookmark, ErrorStatus, ListPage, ObjectSeen, WatchEvent

TIMEOUT_S = 240
"""The timeout that a watch requests, without jitter."""
START = 100.0
PAGES = ReflectorPolicy(streaming_lists=False, backoff=Backoff(first_s=1.0, cap_s=8.0))
STREAMING = ReflectorPolicy(streaming_lists=True, backoff=Backoff(first_s=1.0, cap_s=8.0))

EXPIRED = Failure("Expired", "410: too old", 410)
UNAVAILABLE = Failure("ServerError", "503: not now", 503)
CUT = Failure("ConnectionLost", "the connection was lost")
END_OF_LIST = Bookmark("10", True)


def changed(name: str, version: str) -> ObjectSeen[Found]:
    return ObjectSeen(seen(name, version))


class ReflectorDriver:
    """Drives a reflector with a manual clock, and asserts that each step is what the reflector requested."""

    def __init__(self, policy: ReflectorPolicy = PAGES) -> None:
        self.now = START
        self.reflector = Reflector(policy, lambda: 0.0, self.now)

    @property
    def request(self) -> Request:
        return self.reflector.next(self.now)

    @property
    def status(self) -> tuple[ViewState, float, str]:
        status = self.reflector.status
        return status.state, status.since, status.reason

    def page(self, *observations: Found | None, version: str = "10", then: str = "") -> list[SourceEvent[Found]]:
        assert isinstance(self.request, FetchPage)
        return list(self.reflector.listed(ListPage(version, then), observations, self.now))

    def opened(self) -> list[SourceEvent[Found]]:
        assert isinstance(self.request, OpenWatch)
        return self.reflector.opened(self.now)

    def events(self, *events: WatchEvent[Found]) -> list[SourceEvent[Found]]:
        assert self.reflector.is_reading
        return self.reflector.events(list(events), self.now)

    def ended(self) -> list[SourceEvent[Found]]:
        assert self.reflector.is_reading
        return self.reflector.ended(self.now)

    def silent(self) -> list[SourceEvent[Found]]:
        assert self.reflector.is_reading
        return self.reflector.silent(self.now)

    def give_up(self, failure: Failure, until: float) -> list[SourceEvent[Found]]:
        return self.reflector.give_up(failure, until, self.now)

    def failed(self, failure: Failure = UNAVAILABLE) -> list[SourceEvent[Found]]:
        return self.reflector.failed(failure, self.now)


def listed(policy: ReflectorPolicy = PAGES) -> ReflectorDriver:
    """Return a driver whose reflector completed its first list, at version 10."""
    driver = ReflectorDriver(policy)
    if policy.streaming_lists:
        driver.opened()
        driver.events(END_OF_LIST)
    else:
        driver.page()
    return driver


def watching(policy: ReflectorPolicy = PAGES) -> ReflectorDriver:
    """Return a driver whose reflector reads a watch from version 10."""
    driver = listed(policy)
    if not policy.streaming_lists:
        driver.opened()
    return driver


def refused(code: int, reason: str = "") -> ErrorStatus:
    return ErrorStatus(code, reason, "no")
