"""The reflector: which request to make next, and what the answers mean.

    Waiting ──> ListingPages ──> Opening ──> Watching ──┐
       ^           │           │           │       │ clean end: Opening again, from the last version
       └───────────┴───────────┴───────────┴───────┘ a failure: Waiting, then on from where it stood

A list comes as pages, or, where the server can, as a watch that begins with it (Opening and Filling with no
version). Whichever it is, its end is told as one `ListEnded`, and nothing is concluded from a part.

What is lost is never concluded from silence, refusal or error: these change the source's status and nothing else.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import msgspec

from milo_discoveryd.model.observation import Observation
from milo_discoveryd.model.source import SourceState, SourceStatus
from milo_discoveryd.reflect.backoff import Backoff
from milo_discoveryd.reflect.liveness_policy import LivenessPolicy
from milo_discoveryd.reflect.wire import (
    Bookmark,
    ErrorStatus,
    ListPage,
    ObjectRemoved,
    ObjectSeen,
    Undecodable,
    UnknownEvent,
    WatchEvent,
)

# --- what the driver is asked to do ---


class Wait(msgspec.Struct, frozen=True):
    until: float


class FetchPage(msgspec.Struct, frozen=True):
    continue_token: str
    limit: int
    """0: all of it at once."""


class OpenWatch(msgspec.Struct, frozen=True):
    version: str
    """Empty: begin with the list itself."""
    timeout_s: int


class ReadWatch(msgspec.Struct, frozen=True):
    until: float
    """When silence has lasted too long."""


Request = Wait | FetchPage | OpenWatch | ReadWatch


# --- what the driver tells ---


class Failure(msgspec.Struct, frozen=True):
    """Why a request, or an open watch, came to nothing."""

    reason: str
    """One CamelCase word."""
    message: str
    status: int = 0
    """Of HTTP, or of the Status object in the stream."""
    retry_after_s: float | None = None


# --- what it concludes ---


class ListStarted(msgspec.Struct, frozen=True):
    """What was listed before this and not ended is void."""


class Listed(msgspec.Struct, frozen=True):
    observation: Observation


class Unlisted(msgspec.Struct, frozen=True):
    """Gone again before the list that named it ended."""

    name: str


class ListEnded(msgspec.Struct, frozen=True):
    """The list is complete: what it doesn't name isn't there, as far as the selector goes."""

    versions_went_back: bool = False
    """It is of a version before one that was seen, so the server is not, or no longer, the one that it was."""


class ObjectChanged(msgspec.Struct, frozen=True):
    observation: Observation


class DeletionReported(msgspec.Struct, frozen=True):
    """Reported as deleted, which may also mean that it left the selector, or that the server erred."""

    name: str
    uid: str


class Relisting(msgspec.Struct, frozen=True):
    reason: str
    """For the metric."""


class EventIgnored(msgspec.Struct, frozen=True):
    """An event that was passed over."""

    problem: str


SourceEvent = ListStarted | Listed | Unlisted | ListEnded | ObjectChanged | DeletionReported | Relisting | EventIgnored


# --- states ---


class Waiting(msgspec.Struct, frozen=True):
    until: float
    version: str
    """To watch from; empty: to list."""


class ListingPages(msgspec.Struct, frozen=True):
    continue_token: str = ""


class Opening(msgspec.Struct, frozen=True):
    version: str
    timeout_s: int


class Filling(msgspec.Struct, frozen=True):
    """A watch that begins with the list; `heard_at` moves with each chunk."""

    heard_at: float


class Watching(msgspec.Struct, frozen=True):
    version: str
    opened_at: float
    heard_at: float
    timeout_s: int
    proven: bool = False
    """Something arrived on it: the version it was opened from is one that the server knows."""


ReflectorState = Waiting | ListingPages | Opening | Filling | Watching


class ReflectorPolicy(msgspec.Struct, frozen=True, kw_only=True):
    streaming_lists: bool = True
    page_size: int = 5000
    silence_s: float = 90.0
    """A watch of a server that sends bookmarks (each 60 s) is dead after this much silence."""
    fill_silence_s: float = 15.0
    """A streaming list that stops without an end mark is taken for a server that doesn't know the feature."""
    line_s: float = 30.0
    """An event that has begun and isn't whole after this time came to a halt, however many bytes still drip."""
    min_watch_s: float = 1.0
    """A watch that ends sooner is a failure: some servers end each one at once."""
    healthy_s: float = 10.0
    """A watch that lived this long ends a row of failures..."""
    proven_s: float = 30.0
    """...and this long shows that the list before it was good: lists cost the server more than watches do."""
    backoff: Backoff = Backoff()
    liveness: LivenessPolicy = LivenessPolicy()
    """How a silent server is looked after, whatever is asked of it."""


_RETRY_AFTER_BOUNDS_S = (0.1, 300.0)
# A server that builds its caches says "in a second" for half a minute. One that says so for longer doesn't know.
_PROMISES_BELIEVED = 30
# Answers that say "not from this version": 410 for one too old, 504 for one from the future.
_VERSION_REFUSED = frozenset({410, 504})
_STREAMING_LIST_REFUSED = frozenset({400, 403, 422})
MALFORMED_RESPONSE = "Undecodable"
UNRESPONSIVE = "Unresponsive"
"""It was asked whether it is there, and did not answer."""


class Reflector:
    """Draws random numbers from `jitter` (in [0, 1)), and takes the time as an argument."""

    def __init__(
        self, policy: ReflectorPolicy, jitter: Callable[[], float], now: float, status: SourceStatus | None = None
    ) -> None:
        """`status` is where there is something to begin with: what an earlier run knew, and how old that is."""
        self._policy = policy
        self._jitter = jitter
        self._streaming_lists = policy.streaming_lists
        self._pages_next = False
        self._whole_next = False
        self._bookmarks_seen = False
        self._failures = 0
        self._junk_at = ""
        self._unproven_list = False
        self._pages_outlived = False
        self._highest_version = 0
        self._asked_at = self._listed_at = now
        self._relist_at: float | None = None
        self._line_due_at = math.inf
        self._is_known = False
        self.synced = False
        self.state: ReflectorState = self._list()
        self.status = status or SourceStatus(
            SourceState.CATCHING_UP, now, "Starting", "the first complete list is being read"
        )

    def next(self, now: float) -> Request:
        """The one thing to do now."""
        if isinstance(self.state, Waiting) and now >= self.state.until:
            self.state = self._opening(self.state.version) if self.state.version else self._list()
        match self.state:
            case Waiting(until):
                return Wait(until)
            case ListingPages(token):
                self._asked_at = now
                return FetchPage(token, 0 if self._whole_next else self._policy.page_size)
            case Opening(version, timeout_s):
                self._asked_at = now
                return OpenWatch(version, timeout_s)
            case Filling(heard_at):
                return ReadWatch(min(heard_at + self._policy.fill_silence_s, self._line_due_at))
            case watching:
                silent_at = watching.opened_at + watching.timeout_s + 10.0
                if self._expects_bookmarks:
                    silent_at = watching.heard_at + self._policy.silence_s
                list_at = math.inf if self._relist_at is None else self._relist_at
                return ReadWatch(min(silent_at, list_at, self._line_due_at))

    def relist_by(self, at: float | None) -> None:
        """By then a new list is wanted, however well the watch does; None: no more."""
        self._relist_at = at

    @property
    def _expects_bookmarks(self) -> bool:
        """A server that sends bookmarks does so before long. Of one that may be another than before we wait for them
        even where there were none: from a version that it doesn't know, a watch is silent for ever."""
        return self._bookmarks_seen or not self._is_known

    @property
    def trusted_from(self) -> float:
        """From when on the server that answers is taken for the one that all was heard of. Until then, what it says of
        a single object is no evidence: it may be another, which never had it."""
        if self.status.state is not SourceState.STREAMING:
            return math.inf
        if self._is_known:
            return -math.inf
        # It would have refused the version by then, unless it met one from its future with silence.
        return self.state.opened_at + self._policy.healthy_s if isinstance(self.state, Watching) else math.inf

    @property
    def is_reading(self) -> bool:
        """The watch that the driver holds open is to be read on."""
        return isinstance(self.state, Filling | Watching)

    def listed(self, page: ListPage, observations: Iterable[Observation], now: float) -> Iterator[SourceEvent]:
        """What a page tells, one by one. It counts as read when the last finding was taken."""
        assert isinstance(self.state, ListingPages)
        self._contact(now)
        if not self.state.continue_token:
            yield ListStarted()
        yield from map(Listed, observations)
        if page.continue_token:
            self.state = ListingPages(page.continue_token)
            return
        self._pages_next = self._whole_next = False
        yield self._list_ended(page.version, now)

    def opened(self, now: float) -> list[SourceEvent]:
        assert isinstance(self.state, Opening)
        self._contact(now)
        self._line_due_at = math.inf
        if not self.state.version:
            self.state = Filling(now)
            return [ListStarted()]
        self.state = Watching(self.state.version, now, now, self.state.timeout_s)
        self._streaming(now)
        return []

    def events(self, events: list[WatchEvent], now: float, *, partial: bool = False) -> list[SourceEvent]:
        """What one read of the watch held, with the beginning of another event after it if that is `partial`.

        Afterwards `is_reading` says whether to go on.
        """
        self._contact(now)
        if not partial:
            self._line_due_at = math.inf
        elif events or self._line_due_at == math.inf:
            self._line_due_at = now + self._policy.line_s
        findings: list[SourceEvent] = []
        for event in events:
            match self.state:
                case Filling():
                    findings += self._fill(event, now)
                case Watching():
                    findings += self._watch(event, now)
                case _:
                    break  # an earlier event ended the watch
        match self.state:
            case Filling():
                self.state = Filling(now)
            case Watching() as watching:
                self.state = msgspec.structs.replace(watching, heard_at=now)
                self._note_health(watching, now)
        return findings

    def ended(self, now: float) -> list[SourceEvent]:
        """The server closed the watch cleanly."""
        self._is_known = False
        if isinstance(self.state, Filling):
            return self.failed(Failure("ListCut", "the server ended the list before its end mark"), now)
        assert isinstance(self.state, Watching)
        if now - self.state.opened_at < self._policy.min_watch_s:
            return self.failed(Failure("VeryShortWatch", "the server ended the watch at once"), now)
        self._note_health(self.state, now)
        self.state = self._opening(self.state.version)
        return []

    def silent(self, now: float) -> list[SourceEvent]:
        """The deadline of ReadWatch passed."""
        expected_bookmarks, self._is_known = self._expects_bookmarks, False
        if now >= self._line_due_at:
            return self.failed(
                Failure("SlowLine", f"an event took longer than {self._policy.line_s:g} s to come in"), now
            )
        if isinstance(self.state, Filling):
            # The server took the request for a plain watch: it doesn't know streaming lists.
            self._streaming_lists = False
            self.state = self._list()
            return [Relisting("StreamingListUnsupported")]
        assert isinstance(self.state, Watching)
        if self._relist_at is not None and now >= self._relist_at:
            self._relist_at = None
            self.state = self._list()
            return [Relisting("Verification")]
        if self.state.proven or not expected_bookmarks:
            self.state = self._opening(self.state.version)
            return []
        # A version from the future (a server restored from a backup) is met with silence for ever.
        self.state = self._list()
        return self._catching_up("Silence", "the watch stayed silent since it was resumed", now)

    def failed(self, failure: Failure, now: float) -> list[SourceEvent]:
        assert not isinstance(self.state, Waiting), "nothing was asked for, so nothing can have failed"
        self._is_known = False
        if isinstance(self.state, Watching):
            self._note_health(self.state, now)
        self._failures += 1
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

    def _streaming_list_failed(self, failure: Failure, now: float, delay: float) -> list[SourceEvent]:
        # The server refused (the feature is off, or a right is missing: pages will show which), or it is still building its
        # watch cache, and serves lists with a limit meanwhile: enough for a first view. And what is cut or garbled time
        # and again may come through page by page.
        broke_again = isinstance(self.state, Filling) and self._failures > 1
        if failure.status in _STREAMING_LIST_REFUSED or (failure.status == 429 and not self.synced) or broke_again:
            self._pages_next = True
            self.state = ListingPages()
            return []
        return self._hold("", failure, now, delay)

    def _page_failed(self, token: str, failure: Failure, now: float, delay: float) -> list[SourceEvent]:
        if failure.status == 410 and token:
            # The list outlived what the server remembers. Again from the start, and if that fails too, in one piece.
            self._whole_next, self._pages_outlived = self._pages_outlived, True
            self._pages_next = True
            self.state = Waiting(now, "")
            return [Relisting("Expired")]
        return self._hold("", failure, now, delay)

    def _resume_failed(self, version: str, failure: Failure, now: float, delay: float) -> list[SourceEvent]:
        if failure.status in _VERSION_REFUSED:
            return self._relist(failure, now, delay)
        # Without the collection, or with a server that is broken by the question, the version has no worth either.
        return self._hold("" if failure.status in (404, 500) else version, failure, now, delay)

    def _watch_failed(self, watching: Watching, failure: Failure, now: float, delay: float) -> list[SourceEvent]:
        version = watching.version
        if failure.status in _VERSION_REFUSED:
            return self._relist(failure, now, delay)
        if failure.reason == MALFORMED_RESPONSE:
            again, self._junk_at = version == self._junk_at, version
            if again:
                return self._relist(failure, now, delay)
        is_doubtful = failure.reason != UNRESPONSIVE
        if (
            is_doubtful
            and self._failures == 1
            and (watching.proven or now - watching.opened_at >= self._policy.min_watch_s)
        ):
            # It was well until now: see at once whether the server still answers, before saying otherwise.
            self.state = Waiting(now, version)
            return []
        return self._hold(version, failure, now, delay)

    def _note_health(self, watching: Watching, now: float) -> None:
        age_s = now - watching.opened_at
        if age_s >= self._policy.healthy_s:
            self._failures = 0
        if age_s >= self._policy.proven_s:
            self._unproven_list = False

    def _hold(self, version: str, failure: Failure, now: float, delay: float) -> list[SourceEvent]:
        """What is known stands, as stale; then on from `version`, or with a new list."""
        since = self.status.since if self.status.state is SourceState.STALE else now
        self.status = SourceStatus(SourceState.STALE, since, failure.reason, failure.message, self.status.last_contact)
        self.state = Waiting(now + delay, version)
        return []

    def _fill(self, event: WatchEvent, now: float) -> list[SourceEvent]:
        match event:
            case ObjectSeen(observation):
                return [Listed(observation)]
            case ObjectRemoved(name):
                return [Unlisted(name)]
            case Bookmark(version, True):
                self._bookmarks_seen = True
                return [self._list_ended(version, now, reading=True)]
            case _:
                return self._watch_aside(event, now)

    def _watch(self, event: WatchEvent, now: float) -> list[SourceEvent]:
        assert isinstance(self.state, Watching)
        match event:
            case ObjectSeen(observation):
                self._at(observation.version)
                return [ObjectChanged(observation)]
            case ObjectRemoved(name, uid, version):
                self._at(version)
                return [DeletionReported(name, uid)]
            case Bookmark(version):
                self._bookmarks_seen = True
                self._at(version)
                return []
            case _:
                return self._watch_aside(event, now)

    def _watch_aside(self, event: WatchEvent, now: float) -> list[SourceEvent]:
        match event:
            case ErrorStatus(code, reason, message):
                return self.failed(Failure(reason or "WatchError", message, code), now)
            case Undecodable(problem):
                return self.failed(Failure(MALFORMED_RESPONSE, problem), now)
            case UnknownEvent(problem):
                return [EventIgnored(problem)]
            case _:
                return []  # a bookmark within the list

    def _at(self, version: str) -> None:
        assert isinstance(self.state, Watching)
        self.state = msgspec.structs.replace(self.state, version=version or self.state.version, proven=True)
        self._is_known = True
        self._highest_version = max(self._highest_version, _number(version))

    def _list_ended(self, version: str, now: float, *, reading: bool = False) -> SourceEvent:
        self.synced = self._is_known = True
        self._listed_at = now
        self._pages_outlived = False
        if not version:
            # Without a version there is nothing to watch from: poll.
            self.state = Waiting(now + self._policy.backoff.cap_s, "")
        elif reading:
            self.state = Watching(version, now, now, self._timeout_s(), proven=True)
        else:
            self.state = self._opening(version)
        self._streaming(now)
        # Versions of one resource can be compared, as Kubernetes has it from 1.35 on.
        listed, highest = _number(version), self._highest_version
        self._highest_version = listed or highest
        return ListEnded(versions_went_back=0 < listed < highest)

    def _relist(self, failure: Failure, now: float, delay: float) -> list[SourceEvent]:
        # The first is the ordinary fate of a version that grew too old. One after another is a fault, and dear.
        self.state = Waiting(max(now, self._listed_at + delay) if self._unproven_list else now, "")
        self._unproven_list = True
        return self._catching_up(failure.reason, failure.message, now)

    def _catching_up(self, reason: str, message: str, now: float) -> list[SourceEvent]:
        self.status = SourceStatus(SourceState.CATCHING_UP, now, reason, message, self.status.last_contact)
        return [Relisting(reason)]

    def _streaming(self, now: float) -> None:
        if self.status.state is not SourceState.STREAMING:
            self.status = SourceStatus(SourceState.STREAMING, now, last_contact=now)

    def _contact(self, now: float) -> None:
        self.status = msgspec.structs.replace(self.status, last_contact=now)

    def _delay(self, failure: Failure, now: float) -> float:
        delay = self._policy.backoff.delay(self._failures, self._jitter)
        if failure.retry_after_s is None:
            if isinstance(self.state, ListingPages | Opening):
                # It has been waited for an answer already: a server that is back is not to be waited for twice.
                delay = max(delay - (now - self._asked_at), self._policy.backoff.delay(1, self._jitter))
            return delay
        low, high = _RETRY_AFTER_BOUNDS_S
        asked = max(low, min(high, failure.retry_after_s)) + self._jitter() * min(1.0, delay)
        return asked if self._failures <= _PROMISES_BELIEVED else max(asked, delay)

    def _list(self) -> ReflectorState:
        if self._streaming_lists and not self._pages_next:
            return self._opening("")
        return ListingPages()

    def _opening(self, version: str) -> Opening:
        return Opening(version, self._timeout_s())

    def _timeout_s(self) -> int:
        return int(240 + 240 * self._jitter())


def _number(version: str) -> int:
    """0 for one that is none."""
    return int(version) if version.isascii() and version.isdigit() else 0
