"""The part of the daemon that follows a source, driven step by step instead of by tasks and timers."""

from collections.abc import Callable, Iterable

from milo_discoveryd.engagement.engagement import Engagements
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.log.events import Event
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.observation import Malformed
from milo_discoveryd.objects.pending_deletions import Absent, Found, Inconclusive, PendingDeletions
from milo_discoveryd.sources.reading import KubeObject
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
from milo_kube.reflect.reflector import Reflector, ReflectorPolicy
from milo_kube.reflect.states import Opening, Watching
from milo_kube.reflect.wire import Decoder, Lines
from tests.simulation.properties.api_server import Server, Watch, observe
from tests.unit.fleet.fleets import ListedClusters, at, end_overdue, readable_log

UNAVAILABLE = Failure("ServerError", "503: not now", 503)
EXPIRED = Failure("Expired", "410: too old", 410)


class Follower:
    def __init__(self, server: Server, *, streaming: bool, page_size: int, grace_s: float) -> None:
        self.server = server
        self.now = 0.0
        self.decoder = Decoder(KubeObject, observe, Malformed)
        policy = ReflectorPolicy(streaming_lists=streaming, page_size=page_size, backoff=Backoff(1.0, 4.0))
        self.reflector = Reflector(policy, lambda: 0.0, self.now)
        self.engagements = Engagements(readable_log(), NotReadyClusters(grace_s))
        self.pending_deletions = PendingDeletions(lambda: 0.0, concurrency=2, backoff=Backoff(1.0, 4.0))
        self.listed = ListedClusters(clusters=self.engagements, pending_deletions=self.pending_deletions)
        self.done: list[Event] = []
        """All events since the beginning of the first complete list."""
        self.watch: Watch | None = None
        self._lines = Lines()

    def step(self, answer: Failure | None = None) -> None:
        """Make the next request; `answer` replaces the server's response."""
        match self.reflector.next(self.now):
            case Wait(until):
                self.now = max(self.now, until)
            case FetchPage(token, limit):
                self._page(token, limit, answer)
            case OpenWatch(version):
                self._open(version, answer)
            case ReadWatch(until) if until <= self.now:
                self.time_out()
            case ReadWatch():
                self._read(answer)

    def receive(self, *lines: bytes) -> None:
        """Receive bytes on the open watch: complete or partial lines."""
        events = [self.decoder.line(line) for chunk in lines for line in self._lines.feed(chunk)]
        self._apply_findings(self.reflector.events(events, self.now))

    def ended(self) -> None:
        cut = Failure("TruncatedLine", "the server ended the watch in the middle of an event")
        self._apply_findings(
            self.reflector.failed(cut, self.now) if self._lines.partial else self.reflector.ended(self.now)
        )

    def failed(self, failure: Failure) -> None:
        self._apply_findings(self.reflector.failed(failure, self.now))

    def time_out(self) -> None:
        """Wait until the request in flight has timed out."""
        request = self.reflector.next(self.now)
        assert isinstance(request, ReadWatch)
        self.now = max(self.now, request.until)
        self._apply_findings(self.reflector.silent(self.now))

    def confirm_deletions(self, *, answered: bool = True) -> None:
        if self.listed.collection.trust.is_ignoring:
            return
        for request in self.pending_deletions.take_due(self.now):
            body = self.server.read_object(request.name)
            found = None if body is None else self.decoder.object(body)
            answer = Absent() if found is None else Found(found)
            result = answer if answered else Inconclusive("503")
            self.listed.now = self.now
            self.done += self.listed.resolve(request, result)

    def run_timers(self) -> None:
        for ended in end_overdue(self.engagements, at(self.now)):
            self.done += ended

    def settle(self, enough: Callable[[], bool]) -> None:
        """Continue without faults, and with an administrator who accepts what a restored server shows, until `enough`
        is true."""
        for _ in range(60):
            if self.pending_deletions.until_accepted:
                self.listed.collection.accept(self.now)
            self.step()
            self.confirm_deletions()
            self.run_timers()
            if enough():
                return
            self.now += 5.0
        raise AssertionError(f"not settled: {self.reflector.state}, {len(self.pending_deletions)} pending deletions")

    def _page(self, token: str, limit: int, answer: Failure | None) -> None:
        body = self.server.page(limit, token)
        if answer is not None or body is None:
            self.failed(answer or EXPIRED)
            return
        page, observations = self.decoder.page(body)
        self._apply_findings(self.reflector.listed(page, observations, self.now))

    def _open(self, version: str, answer: Failure | None) -> None:
        self.watch = self.server.watch(version)
        self._lines = Lines()
        if answer is not None or self.watch is None:
            self.failed(answer or EXPIRED)
            return
        self._apply_findings(self.reflector.opened(self.now))

    def _read(self, answer: Failure | None) -> None:
        assert self.watch is not None
        if answer is not None:
            self.failed(answer)
        elif self.watch.position is not None and not self.watch.initial and self.watch.position < self.server.compacted:
            self.receive(b'{"type":"ERROR","object":{"code":410,"reason":"Expired"}}\n')
        elif lines := self.server.read(self.watch):
            self.receive(*lines)
        else:
            self.time_out()

    def _apply_findings(self, findings: Iterable[SourceEvent[ObservedObject]]) -> None:
        def noted() -> Iterable[SourceEvent[ObservedObject]]:
            for finding in findings:
                if isinstance(finding, ListStarted) and not self.listed.collection.is_synced:
                    self.done.clear()  # nothing is published before the first list is complete
                yield finding
                if isinstance(finding, ListEnded):
                    assert isinstance(self.reflector.state, Opening | Watching)
                    self.server.was_listed(self.reflector.state.version)

        self.listed.now = self.now
        for done in self.listed.take_batches(noted()):
            self.done += done
        self.reflector.relist_by(self.listed.collection.relist_at)
