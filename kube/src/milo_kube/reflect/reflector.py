"""The reflector: decides which request to make next, and what the responses mean.

    Waiting ──> ListingPages ──> Opening ──> Watching ──┐
       ^             │              │            │      │ clean end: Opening again, from the last version
       └─────────────┴──────────────┴────────────┴──────┘ a failure: Waiting, then the list or watch again

A list comes in pages or, if the server supports it, as a streaming list: a watch that begins with the list (Opening
without a version, then Filling). Either way it ends with one `ListEnded`, and an incomplete list proves nothing.

Silence, refusals and errors are never evidence of a deletion: the objects stay, and at most the source becomes stale.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Generic

import msgspec

from milo_kube.list_pages import MAX_S, EndlessListError, ListPages, PageSize
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.liveness_policy import LivenessPolicy
from milo_kube.reflect.messages import (
    MALFORMED_RESPONSE,
    RESPONSE_TOO_LARGE,
    UNRESPONSIVE,
    VERY_SHORT_WATCH,
    DeletionReported,
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
    Request,
    SourceEvent,
    Unlisted,
    VersionReached,
    Wait,
)
from milo_kube.reflect.states import (
    Filling,
    ListingPages,
    ListMethod,
    Opening,
    ReflectorState,
    ServerTrust,
    Waiting,
    Watching,
)
from milo_kube.reflect.view_status import ViewState, ViewStatus
from milo_kube.reflect.wire import (
    Bookmark,
    ErrorStatus,
    ListPage,
    ObjectRemoved,
    ObjectSeen,
    Seen,
    Undecodable,
    UnknownEvent,
    WatchEvent,
)


class ReflectorPolicy(msgspec.Struct, frozen=True, kw_only=True):
    streaming_lists: bool = True
    page_size: int = 5000
    silence_s: float = 90.0
    """Maximum time without data on a watch, if bookmarks are expected (servers send them every 60 s)."""
    fill_silence_s: float = 15.0
    """Maximum time without data within a streaming list, or before it; after that, pages are requested instead."""
    line_s: float = 30.0
    """Maximum time for one event to arrive completely, even if its bytes keep arriving."""
    min_watch_s: float = 1.0
    """A watch that ends sooner is treated as a failure: some servers end each watch at once."""
    healthy_s: float = 10.0
    """A watch of this age resets the backoff."""
    proven_s: float = 30.0
    """A watch of this age proves that the version of its list is usable. Before that, relists are delayed."""
    backoff: Backoff = Backoff()
    liveness: LivenessPolicy = LivenessPolicy()


_RETRY_AFTER_BOUNDS_S = (0.1, 300.0)
_RETRY_AFTER_OBEYED = 30
"""Number of consecutive failures for which only Retry-After counts; after these, the client's backoff applies too. A
server sends `Retry-After: 1` each time while it builds its caches, which takes half a minute."""
_VERSION_REFUSED = frozenset({410, 504})
"""Statuses that refuse a resource version: 410 if it is too old, 504 if it is in the server's future."""
_ENDLESS_RETRY_S = 300.0
"""Delay after a list without an end, which takes thousands of requests each time."""
_MALFORMED_AT_MOST = 2
_ERRORS_AT_MOST = 5
_SHORT_AT_MOST = 20
"""Number of watches that the server ends at one version by something malformed, an error, or at once. Then a list is
requested: the next event may be why, such as a state of an object that the server cannot convert, and that has changed
since. Some servers end each watch at once, and a list costs them more."""
_RESUME_REFUSED = frozenset({*range(400, 500), 500, 501}) - {401, 403, 407, 408, 425, 429}
"""Statuses of a refused watch after which a list may succeed, because they neither reject the caller nor request a
later retry."""
_FORBIDDEN_LIST_S = 300.0
"""Time for which a watch is forbidden until a list is requested: the right to list may be there without that to watch.
By then the version is usually compacted, so a list would be needed in any case."""
_STREAMING_LIST_REFUSED = _RESUME_REFUSED | {403, 504}
"""Statuses of a refused streaming list after which one in pages may succeed: 405 and 501 of servers without watches,
500 and 504 of those whose cache cannot serve it."""


class Attempts(msgspec.Struct):
    """The counts and times from which the delays before retries and relists are computed."""

    requested_at: float
    listed_at: float
    failures: int = 0
    """The number of consecutive failures."""
    broken_at: str = ""
    """The version at which a watch was last ended by what the server sent."""
    broken: int = 0
    """How often, since the last list."""
    list_is_unproven: bool = False
    """Whether a refused version or undecodable data caused a relist, and no watch has been open for `proven_s` since
    then."""


class Reflector(Generic[Seen]):
    """The state machine of one collection's list and watch. `jitter` returns random numbers in [0, 1)."""

    def __init__(
        self,
        policy: ReflectorPolicy,
        jitter: Callable[[], float],
        now: float,
        status: ViewStatus | None = None,
    ) -> None:
        """`status` is that of a restored fleet, if there is one."""
        self.policy = policy
        self._jitter = jitter
        self.list_method = ListMethod(policy.streaming_lists, PageSize(policy.page_size))
        self.trust = ServerTrust()
        self._attempts = Attempts(requested_at=now, listed_at=now)
        self._relist_at: float | None = None
        self.synced = False
        self.state: ReflectorState = self._list()
        self.status = status or ViewStatus(
            ViewState.CATCHING_UP, now, "Starting", "the first complete list is being read"
        )

    # --- for the driver ---

    def next(self, now: float) -> Request:
        """Return the one request to make now."""
        if isinstance(self.state, Waiting) and now >= self.state.until:
            self.state = self._opening(self.state.version) if self.state.version else self._list()
        match self.state:
            case Waiting(until):
                return Wait(until)
            case ListingPages(token):
                self._attempts.requested_at = now
                return FetchPage(token, self.list_method.limit)
            case Opening(version, timeout_s):
                self._attempts.requested_at = now
                return OpenWatch(version, timeout_s)
            case Filling(begun_at, heard_at, line_due_at):
                return ReadWatch(min(begun_at + MAX_S, heard_at + self.policy.fill_silence_s, line_due_at))
            case watching:
                silent_at = watching.opened_at + watching.timeout_s + 10.0
                if self.trust.expects_bookmarks:
                    silent_at = watching.heard_at + self.policy.silence_s
                list_at = math.inf if self._relist_at is None else self._relist_at
                return ReadWatch(min(silent_at, list_at, watching.line_due_at))

    def relist_by(self, at: float | None) -> None:
        """List again by this time, even if the watch is healthy; None cancels that."""
        self._relist_at = at

    @property
    def trusted_from(self) -> float:
        """When it is safe to assume that the responding server is the one that all data came from.

        Until then, "not found" from it proves nothing: another server may never have had the object.
        """
        if self.status.state is ViewState.STALE:
            return math.inf
        if self.trust.is_known:
            return -math.inf
        # By then a different server would have refused the version, unless the version is in its future.
        return self.state.opened_at + self.policy.healthy_s if isinstance(self.state, Watching) else math.inf

    @property
    def is_reading(self) -> bool:
        """True while the driver is to continue reading the open watch."""
        return isinstance(self.state, Filling | Watching)

    def listed(self, page: ListPage, observations: Iterable[Seen | None], now: float) -> Iterator[SourceEvent[Seen]]:
        """Yield the events of a page. The page counts as read once the last event was consumed."""
        assert isinstance(self.state, ListingPages)
        self._contact(now)
        if not self.state.continue_token:
            yield ListStarted()
        for seen in observations:
            yield EventIgnored("a listed object has no name") if seen is None else Listed(seen)
        self.list_method.page_size.page_fitted()
        if page.continue_token:
            try:
                read = (self.state.read or ListPages(now)).next(page.continue_token, now)
            except EndlessListError as error:
                yield from self.give_up(Failure(MALFORMED_RESPONSE, str(error)), now + _ENDLESS_RETRY_S, now)
            else:
                self.state = ListingPages(page.continue_token, read)
            return
        self.list_method.pages_ended()
        yield self._list_ended(page.version, now)

    def opened(self, now: float) -> list[SourceEvent[Seen]]:
        assert isinstance(self.state, Opening)
        self._contact(now)
        if not self.state.version:
            self.state = Filling(now, now)
            return [ListStarted()]
        self.state = Watching(self.state.version, now, now, self.state.timeout_s)
        self._streaming(now)
        return []

    def events(self, events: list[WatchEvent[Seen]], now: float, *, partial: bool = False) -> list[SourceEvent[Seen]]:
        """Apply the watch events of one read. `partial`: whether the beginning of another event followed them.

        Afterwards, `is_reading` is True if reading continues.
        """
        self._contact(now)
        found: list[SourceEvent[Seen]] = []
        for event in events:
            match self.state:
                case Filling():
                    found += self._fill(event, now)
                case Watching():
                    found += self._watch(event, now)
                case _:
                    break  # an earlier event ended the watch
        match self.state:
            case Filling(begun_at) if now >= begun_at + MAX_S:
                found += self._list_in_pages()
            case Filling(begun_at, line_due_at=line_due_at):
                self.state = Filling(begun_at, now, self._line_due_at(line_due_at, now, bool(events), partial))
            case Watching() as watching:
                line_due_at = self._line_due_at(watching.line_due_at, now, bool(events), partial)
                self.state = msgspec.structs.replace(watching, heard_at=now, line_due_at=line_due_at)
                self._note_health(watching, now)
        return found

    def ended(self, now: float) -> list[SourceEvent[Seen]]:
        """Handle a clean end of the watch."""
        self.trust.is_known = False
        if isinstance(self.state, Filling):
            return self.failed(Failure("ListCut", "the server ended the streaming list before its final bookmark"), now)
        assert isinstance(self.state, Watching)
        if now - self.state.opened_at < self.policy.min_watch_s:
            message = "the server ended the watch in its first second"
            return self.failed(Failure(VERY_SHORT_WATCH, message, is_sent=True), now)
        self._note_health(self.state, now)
        self.state = self._opening(self.state.version)
        return []

    def silent(self, now: float) -> list[SourceEvent[Seen]]:
        """Handle an expired deadline of ReadWatch, or of the response to a streaming list."""
        if isinstance(self.state, Opening):
            assert not self.state.version, "a watch has a deadline of its own"
            self.list_method.paged_next = True
            self.state = ListingPages()
            return []
        expected_bookmarks, self.trust.is_known = self.trust.expects_bookmarks, False
        assert isinstance(self.state, Filling | Watching)
        if now >= self.state.line_due_at:
            message = f"one event took longer than {self.policy.line_s:g} s to arrive"
            return self.failed(Failure("SlowLine", message), now)
        if isinstance(self.state, Filling):
            return self._list_in_pages()
        if self._relist_at is not None and now >= self._relist_at:
            self._relist_at = None
            self.state = self._list()
            return [Relisting("Verification")]
        if self.state.proven or not expected_bookmarks:
            self.state = self._opening(self.state.version)
            if expected_bookmarks:
                self._catch_up("Silence", f"the watch received no data for {self.policy.silence_s:g} s", now)
            return []
        # A server restored from a backup sends nothing on a watch from a version in its future.
        self.state = self._list()
        self._catch_up("Silence", "the watch has received no data since it was resumed", now)
        return [Relisting("Silence")]

    def _list_in_pages(self) -> list[SourceEvent[Seen]]:
        """The server treated the request as a plain watch: it does not support streaming lists."""
        self.list_method.streaming = False
        self.state = self._list()
        return [Relisting("StreamingListUnsupported")]

    def give_up(self, failure: Failure, until: float, now: float) -> list[SourceEvent[Seen]]:
        """End the list or watch because of a failure that a retry soon would repeat, and list again at `until`."""
        self.trust.is_known = False
        self._stale("", failure, now, until - now)
        return [ListStarted()]  # discards an incomplete list

    def start_over(self, failure: Failure, now: float) -> None:
        """End the list or watch, in whichever state it is, and list again with backoff."""
        self._attempts.failures += 1
        self.give_up(failure, now + self.policy.backoff.delay(self._attempts.failures, self._jitter), now)

    def failed(self, failure: Failure, now: float) -> list[SourceEvent[Seen]]:
        assert not isinstance(self.state, Waiting), "a failure was reported without a request in flight"
        # A server that refuses each version that it has just listed is still the server that sent the list.
        refuses_own_list = self._attempts.list_is_unproven and failure.status in _VERSION_REFUSED
        self.trust.is_known = self.trust.is_known and refuses_own_list
        if isinstance(self.state, Watching):
            self._note_health(self.state, now)
        self._attempts.failures += 1
        delay = self._delay(failure, now)
        match self.state:
            case Opening("", _) | Filling():
                return self._streaming_list_failed(failure, now, delay)
            case ListingPages(token):
                return self._page_failed(token, failure, now, delay)
            case Opening(version, _):
                return self._resume_failed(version, failure, now, delay)
            case watching:
                return self._watch_failed(watching, failure, now, delay)

    # --- failures, by state ---

    def _streaming_list_failed(self, failure: Failure, now: float, delay: float) -> list[SourceEvent[Seen]]:
        # A refusal means that the feature is disabled, or a permission is missing (which a paged list then reports).
        # With 429 before the first list, the server is still building its watch cache, but can serve pages. If the
        # stream breaks repeatedly, a list in pages may succeed.
        broke_again = isinstance(self.state, Filling) and self._attempts.failures > 1
        is_refused = failure.status in _STREAMING_LIST_REFUSED and isinstance(self.state, Opening)
        if is_refused or (failure.status == 429 and not self.synced) or broke_again:
            self.list_method.paged_next = True
            self.state = ListingPages()
            return []
        return self._stale("", failure, now, delay)

    def _page_failed(self, token: str, failure: Failure, now: float, delay: float) -> list[SourceEvent[Seen]]:
        # A server that continues also a list that was requested as a whole is asked again after a delay.
        if failure.status == 410 and token and not self.list_method.unpaged_next:
            self.list_method.pages_outlived_version()
            self.state = Waiting(now, "")
            return [Relisting("Expired")]
        if failure.reason == RESPONSE_TOO_LARGE:
            if self.list_method.ask_for_less():
                assert isinstance(self.state, ListingPages)
                self.state = msgspec.structs.replace(self.state)  # another one: the page is not awaited any longer
                return []
            self.list_method.pages_restarted()
        return self._stale("", failure, now, delay)

    def _resume_failed(self, version: str, failure: Failure, now: float, delay: float) -> list[SourceEvent[Seen]]:
        if failure.status in _VERSION_REFUSED:
            return self._relist(failure, now, delay)
        # A status in _RESUME_REFUSED means that the server does not serve the collection, does not support watches, or
        # does not have the version. A list may still succeed.
        stale_s = now - self.status.since if self.status.state is ViewState.STALE else 0.0
        may_list = failure.status in _RESUME_REFUSED or (failure.status == 403 and stale_s >= _FORBIDDEN_LIST_S)
        return self._stale("" if may_list else version, failure, now, delay)

    def _watch_failed(self, watching: Watching, failure: Failure, now: float, delay: float) -> list[SourceEvent[Seen]]:
        version = watching.version
        if failure.status in _VERSION_REFUSED:
            return self._relist(failure, now, delay)
        is_malformed = failure.reason == MALFORMED_RESPONSE
        if is_malformed or failure.is_sent:
            broken = self._attempts.broken + 1 if version == self._attempts.broken_at else 1
            self._attempts.broken_at, self._attempts.broken = version, broken
            if is_malformed and broken >= _MALFORMED_AT_MOST:
                self._attempts.broken = 0
                return self._relist(failure, now, delay)
            if broken >= (_SHORT_AT_MOST if failure.reason == VERY_SHORT_WATCH else _ERRORS_AT_MOST):
                self._attempts.broken = 0
                return self._stale("", failure, now, delay)
        was_healthy = watching.proven or now - watching.opened_at >= self.policy.min_watch_s
        if failure.reason != UNRESPONSIVE and self._attempts.failures == 1 and was_healthy:
            # Most disconnects are routine: resume at once, and become stale only if that fails.
            self.state = Waiting(now, version)
            return []
        return self._stale(version, failure, now, delay)

    def _stale(self, version: str, failure: Failure, now: float, delay: float) -> list[SourceEvent[Seen]]:
        """Mark the source as stale and keep its objects; later watch from `version`, or list if it is empty."""
        since, retry_at = self.status.since if self.status.state is ViewState.STALE else now, now + delay
        self.status = ViewStatus(
            ViewState.STALE, since, failure.reason, failure.message, self.status.last_contact, retry_at
        )
        self.state = Waiting(retry_at, version)
        return []

    def _relist(self, failure: Failure, now: float, delay: float) -> list[SourceEvent[Seen]]:
        # One relist is routine: the version became too old. Repeated relists are a fault, and expensive.
        list_at = max(now, self._attempts.listed_at + delay) if self._attempts.list_is_unproven else now
        self.state = Waiting(list_at, "")
        self._attempts.list_is_unproven = True
        self._catch_up(failure.reason, failure.message, now)
        return [Relisting(failure.reason)]

    # --- watch events ---

    def _fill(self, event: WatchEvent[Seen], now: float) -> list[SourceEvent[Seen]]:
        match event:
            case ObjectSeen(observation):
                return [Listed(observation)]
            case ObjectRemoved(name, namespace=namespace):
                return [Unlisted(name, namespace)]
            case Bookmark(version, True):
                self.trust.sends_bookmarks = True
                return [self._list_ended(version, now, reading=True)]
            case _:
                return self._other_event(event, now)

    def _watch(self, event: WatchEvent[Seen], now: float) -> list[SourceEvent[Seen]]:
        match event:
            case ObjectSeen(observation):
                self._seen(observation.version)
                return [ObjectChanged(observation)]
            case ObjectRemoved(name, uid, version, namespace, last):
                self._seen(version)
                return [DeletionReported(name, uid, namespace, version, last)]
            case Bookmark(version):
                self.trust.sends_bookmarks = True
                self._seen(version)
                return [VersionReached(version)]
            case _:
                return self._other_event(event, now)

    def _other_event(self, event: WatchEvent[Seen], now: float) -> list[SourceEvent[Seen]]:
        match event:
            case ErrorStatus(code, reason, message):
                return self.failed(Failure(reason or "WatchError", message, code, is_sent=True), now)
            case Undecodable(problem):
                return self.failed(Failure(MALFORMED_RESPONSE, problem), now)
            case UnknownEvent(problem):
                return [EventIgnored(problem)]
            case _:
                return []  # a bookmark within the list

    def _seen(self, version: str) -> None:
        assert isinstance(self.state, Watching)
        self.state = msgspec.structs.replace(self.state, version=version or self.state.version, proven=True)
        self.trust.is_known = True

    def _line_due_at(self, before: float, now: float, completed: bool, partial: bool) -> float:
        if not partial:
            return math.inf
        return now + self.policy.line_s if completed or before == math.inf else before

    def _list_ended(self, version: str, now: float, *, reading: bool = False) -> SourceEvent[Seen]:
        self.synced = True
        self._attempts.listed_at = now
        self.list_method.pages_expired = False
        if not version:
            # Without a version there is nothing to watch from: poll.
            self.state = Waiting(now + self.policy.backoff.cap_s, "")
        elif reading:
            self.state = Watching(version, now, now, self._timeout_s(), proven=True)
        else:
            self.state = self._opening(version)
        self._streaming(now)
        self.trust.is_known = True
        return ListEnded(version)

    # --- status and delays ---

    def _note_health(self, watching: Watching, now: float) -> None:
        age_s = now - watching.opened_at
        if age_s >= self.policy.healthy_s:
            self._attempts.failures = 0
        if age_s >= self.policy.proven_s:
            self._attempts.list_is_unproven = False

    def _catch_up(self, reason: str, message: str, now: float) -> None:
        self.status = ViewStatus(ViewState.CATCHING_UP, now, reason, message, self.status.last_contact)

    def _streaming(self, now: float) -> None:
        if self.status.state is not ViewState.STREAMING:
            self.status = ViewStatus(ViewState.STREAMING, now, last_contact=now)

    def _contact(self, now: float) -> None:
        self.status = msgspec.structs.replace(self.status, last_contact=now)

    def _delay(self, failure: Failure, now: float) -> float:
        delay = self.policy.backoff.delay(self._attempts.failures, self._jitter)
        if failure.retry_after_s is None:
            if isinstance(self.state, ListingPages | Opening):
                # The time that the request took counts towards the delay.
                delay = max(delay - (now - self._attempts.requested_at), self.policy.backoff.delay(1, self._jitter))
            return delay
        low, high = _RETRY_AFTER_BOUNDS_S
        requested = max(low, min(high, failure.retry_after_s)) + self._jitter() * min(1.0, delay)
        return requested if self._attempts.failures <= _RETRY_AFTER_OBEYED else max(requested, delay)

    def _list(self) -> ReflectorState:
        return self._opening("") if self.list_method.is_streaming else ListingPages()

    def _opening(self, version: str) -> Opening:
        return Opening(version, self._timeout_s())

    def _timeout_s(self) -> int:
        return int(240 + 240 * self._jitter())
