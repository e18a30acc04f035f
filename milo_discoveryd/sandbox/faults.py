"""What goes wrong with an API server, to order: each fault is one that a real server was seen to show."""

from collections.abc import Callable, Mapping
from math import inf

import msgspec

from milo_discoveryd.sandbox.calls import Call
from milo_discoveryd.sandbox.collection import Page
from milo_discoveryd.sandbox.refusals import PlainError, RefusedError

Query = Mapping[str, str]
Answer = Callable[[Call, float], RefusedError | PlainError]
"""From the call and how many seconds the fault has been there, what it answers."""


class Fault(msgspec.Struct, kw_only=True):
    """Answers in place of the API: whom, with what, how often, until when."""

    concerns: Callable[[Call, Query], bool]
    answer: Answer
    since: float
    until: float = inf
    times: float = inf


class Faults:
    """Those in force. Times are the event loop's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._faults: list[Fault] = []
        self._lists_are_empty = False

    def clear(self) -> None:
        self._faults.clear()
        self._lists_are_empty = False

    def check(self, call: Call, query: Query, *, now: float) -> None:
        """Raise what the first fault that concerns the call answers."""
        self._faults = [fault for fault in self._faults if now < fault.until and fault.times > 0]
        for fault in self._faults:
            if fault.concerns(call, query):
                fault.times -= 1
                raise fault.answer(call, now - fault.since)

    def seen(self, page: Page) -> Page:
        """What a list shows of what is there."""
        return Page(records=[], version=page.version) if self._lists_are_empty else page
