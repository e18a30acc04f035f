"""The left half of the daemon, driven step by step instead of by tasks and timers."""

from collections.abc import Callable, Iterable

from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import Malformed, Observation
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.intake import Intake
from milo_discoveryd.registry.not_ready import NotReadyClusters
from milo_discoveryd.registry.pending_deletions import Found, Inconclusive, NotFound, PendingDeletions
from milo_discoveryd.registry.registry import Registry
from milo_kube.reflect.backoff import Backoff
from milo_kube.reflect.messages import (
    Failure,
    FetchPage,
    ListEnded,
    ListStarted,
    OpenWatch,
    ReadWatch,
    SourceEvent,
    Wait,
)
from milo_kube.reflect.reflector import Opening, Reflector, ReflectorPolicy, Watching
from milo_kube.reflect.wire import Decoder, Lines
from tests.simulation.properties.api_server import Server, Watch, observe
from tests.unit.registry.fleets import at, readable_log

UNAVAILABLE = Failure("ServerError", "503: not now", 503)
EXPIRED = Failure("Expired", "410: too old", 410)


class Follower:
    def __init__(self, server: Server, *, streaming: bool, page_size: int, grace_s: float) -> None:
        self.server = server
        self.now = 0.0
        self.decoder = Decoder(KubeObject, observe, Malformed)
        policy = ReflectorPolicy(streaming_lists=streaming, page_size=page_size, backoff=Backoff(1.0, 4.0))
        self.reflector = Reflector(policy, lambda: 0.0, self.now)
        self.registry = Registry(readable_log(), NotReadyClusters(grace_s))
        self.pending_deletions = PendingDeletions(lambda: 0.0, concurrency=2, backoff=Backoff(1.0, 4.0))
        self.intake = Intake(self.registry, self.pending_deletions)
        self.done: list[Event] = []
        """All that was told, once the first list was complete."""
        self.watch: Watch | None = None
        self._lines = Lines()

    def step(self, answer: Failure | None = None) -> None:
        """Makes the next request; `answer` is what comes of it instead of what should."""
        match self.reflector.next(self.now):
            case Wait(until):
                self.now = max(self.now, until)
            case FetchPage(token, limit):
                self._page(token, limit, answer)
            case OpenWatch(version):
                self._open(version, answer)
            case ReadWatch():
                self._read(answer)

    def hears(self, *lines: bytes) -> None:
        """These lines arrive on the open watch, whole or not."""
        events = [self.decoder.line(line) for chunk in lines for line in self._lines.feed(chunk)]
        self._found(self.reflector.events(events, self.now))

    def ended(self) -> None:
        cut = Failure("TruncatedLine", "the server ended the watch in the middle of an event")
        self._found(self.reflector.failed(cut, self.now) if self._lines.partial else self.reflector.ended(self.now))

    def failed(self, failure: Failure) -> None:
        self._found(self.reflector.failed(failure, self.now))

    def waits(self) -> None:
        """Until the request that is under way has lasted too long."""
        request = self.reflector.next(self.now)
        assert isinstance(request, ReadWatch)
        self.now = max(self.now, request.until)
        self._found(self.reflector.silent(self.now))

    def asks(self, *, answered: bool = True) -> None:
        for question in self.pending_deletions.take_due(self.now):
            body = self.server.look(question.name)
            found = None if body is None else self.decoder.object(body)
            answer = NotFound() if found is None else Found(found)
            told = answer if answered else Inconclusive("503")
            self.done += self.intake.resolve(question, told, at(self.now))

    def ticks(self) -> None:
        self.done += self.registry.end_overdue(at(self.now))

    def settle(self, enough: Callable[[], bool]) -> None:
        """Goes on, with nothing going wrong any more, until it is enough."""
        for _ in range(60):
            self.step()
            self.asks()
            self.ticks()
            if enough():
                return
            self.now += 5.0
        raise AssertionError(f"not settled: {self.reflector.state}, {len(self.pending_deletions)} pending_deletions")

    def _page(self, token: str, limit: int, answer: Failure | None) -> None:
        body = self.server.page(limit, token)
        if answer is not None or body is None:
            self.failed(answer or EXPIRED)
            return
        page, observations = self.decoder.page(body)
        self._found(self.reflector.listed(page, observations, self.now))

    def _open(self, version: str, answer: Failure | None) -> None:
        self.watch = self.server.watch(version)
        self._lines = Lines()
        if answer is not None or self.watch is None:
            self.failed(answer or EXPIRED)
            return
        self._found(self.reflector.opened(self.now))

    def _read(self, answer: Failure | None) -> None:
        assert self.watch is not None
        if answer is not None:
            self.failed(answer)
        elif self.watch.position is not None and not self.watch.initial and self.watch.position < self.server.compacted:
            self.hears(b'{"type":"ERROR","object":{"code":410,"reason":"Expired"}}\n')
        elif lines := self.server.read(self.watch):
            self.hears(*lines)
        else:
            self.waits()

    def _found(self, findings: Iterable[SourceEvent[Observation]]) -> None:
        def noted() -> Iterable[SourceEvent[Observation]]:
            for finding in findings:
                if isinstance(finding, ListStarted) and not self.intake.synced:
                    self.done.clear()  # nothing was published yet
                yield finding
                if isinstance(finding, ListEnded):
                    assert isinstance(self.reflector.state, Opening | Watching)
                    self.server.was_listed(self.reflector.state.version)

        for done in self.intake.take(noted(), at(self.now)):
            self.done += done
