"""Validators of subscriber histories, each of which yields the violations that it finds.

The method is etcd's: record what clients receive under faults of all kinds, and check it afterwards.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from milo_discovery import Event, EventType
from milo_discoveryd.server.calls.revision import Position, parse
from tests.end_to_end.process.history import Batch, History, RecordedEvent, Stream
from tests.end_to_end.process.upstream import Upstream


@dataclass
class Reader:
    """The reference model: the state of a client that follows the proto file, after these batches."""

    view: dict[str, RecordedEvent] = field(default_factory=dict)
    snapshot: dict[str, RecordedEvent] | None = None
    """The part of a snapshot received so far; it replaces the view when it is complete."""

    def take(self, batch: Batch) -> Iterator[str]:
        """Apply a batch; yield events that contradict the state before them."""
        if batch.reset:
            self.snapshot = {}
        known = self.view if self.snapshot is None else self.snapshot
        for event in batch.events:
            before = known.get(event.name)
            if (before is None) != (event.kind == "ENGAGED"):
                yield f"{event} was received while the cluster was {'not ' if before is None else ''}engaged"
            elif before is not None and before.incarnation != event.incarnation:
                yield f"{event} was received while the cluster was engaged as {before.incarnation}"
            if event.kind == "DISENGAGED":
                known.pop(event.name, None)
            else:
                known[event.name] = event
        if self.snapshot is not None and batch.synced:
            self.view, self.snapshot = self.snapshot, None

    def start(self, stream: Stream) -> None:
        """Begin another stream; an incomplete snapshot is dropped."""
        self.snapshot = None
        if stream.is_of_new_process:
            self.view = {}


def ordered(history: History) -> Iterator[str]:
    """Yield gaps between batches, and revisions that decrease."""
    for stream in history.streams:
        wanted = ""
        last: Position | None = None
        for index, batch in enumerate(stream.batches):
            if index == 0 and batch.synced and not batch.reset:
                wanted = stream.resumed_from
            if batch.previous != wanted:
                yield f"the batch at {batch.revision} has the previous revision {batch.previous!r}, want {wanted!r}"
            if _is_before(batch.position, last):
                yield f"the batch at {batch.revision} is older than the batch before it, at {last}"
            wanted, last = batch.revision, batch.position


def unique(history: History, upstream: Upstream) -> Iterator[str]:
    """Yield repeated and outdated events, on a stream and across resumes.

    After a restore upstream, objects may be as they were before. One repeat is allowed: a reader that was cut while
    it caught up may have received ENGAGED with the current state, and receives the update that led to this state
    when it resumes.
    """
    reader = Reader()
    for stream in history.streams:
        reader.start(stream)
        for batch in stream.batches:
            known = {} if batch.reset else dict(reader.view if reader.snapshot is None else reader.snapshot)
            list(reader.take(batch))
            for event in batch.events:
                before = known.get(event.name)
                if before is not None and before.incarnation == event.incarnation and not upstream.went_back:
                    if event.kind == before.kind == "UPDATED" and event.content == before.content:
                        yield f"{event} at {batch.revision} repeats an earlier event"
                    if event.version < before.version:
                        yield f"{event} at {batch.revision} is of version {event.version}, after {before.version}"
                known[event.name] = event


def forward(history: History, upstream: Upstream) -> Iterator[str]:
    """Yield events with an older version of an object than the subscriber had received before.

    Unlike `unique`, this spans incarnations and snapshots. A version of 0 was restored from a state file, and a restore
    upstream brings older versions.
    """
    latest: dict[str, int] = {}
    for batch in history.batches():
        for event in batch.events:
            if event.version < latest.get(event.uid, 0) and event.version and not upstream.went_back:
                yield f"{event} at {batch.revision} is of version {event.version}, after {latest[event.uid]}"
            latest[event.uid] = max(event.version, latest.get(event.uid, 0))


def reliable(history: History, upstream: Upstream) -> Iterator[str]:
    """Yield events that contradict the state before them, and differences from the server's state at the end."""
    reader = Reader()
    for stream in history.streams:
        reader.start(stream)
        for batch in stream.batches:
            yield from reader.take(batch)
    truth = {name: (state.uid, state.labels) for name, state in upstream.engaged(history.label_selector).items()}
    view = {name: (cluster.uid, cluster.labels) for name, cluster in reader.view.items()}
    for name in sorted(truth.keys() | view.keys()):
        if truth.get(name) != view.get(name):
            yield f"{name} is {view.get(name)} for the subscriber, and {truth.get(name)} upstream"


def atomic(history: History) -> Iterator[str]:
    """Yield revisions that are split over batches: a batch with events has a later revision than the one before it."""
    for stream in history.streams:
        last: Position | None = None
        for batch in stream.batches:
            here = batch.position
            # All parts of a snapshot have its revision.
            followed = last is not None and last.part is None and not batch.reset
            if batch.events and followed and here is not None and not _is_before(last, here):
                yield f"the batch at {batch.revision} has events, but no later revision than the batch before it"
            last = here


def resumable(history: History, *, forgets: bool = False) -> Iterator[str]:
    """Yield wrong resumes. A resume from a revision of this daemon continues there; any other one receives a snapshot.

    A daemon that `forgets` early may answer any resume with a snapshot.
    """
    for stream in history.streams:
        first = next((batch for batch in stream.batches if batch.position), None)
        if first is None or first.position is None:
            continue
        asked = parse(stream.resumed_from)
        can_be = asked is not None and asked.part is None and asked.epoch == first.position.epoch
        if can_be and first.reset and not forgets:
            yield f"the resume from {stream.resumed_from} received a snapshot, although the daemon has this revision"
        if not can_be and not first.reset:
            yield f"a stream continues from {stream.resumed_from!r}, which cannot be resumed from"


def agreeing(histories: Iterable[History]) -> Iterator[str]:
    """Yield subscribers with the same filter that have different clusters at the same revision.

    Between two heartbeats, a reader that is behind may receive changes of a cluster later and coalesced; after a
    heartbeat nothing is pending.
    """
    known: dict[tuple[str, bool], tuple[str, Mapping[str, object]]] = {}
    for history in histories:
        reader = Reader()
        for stream in history.streams:
            reader.start(stream)
            for batch in stream.batches:
                list(reader.take(batch))
                if not batch.synced or not batch.revision:
                    continue
                view = {name: cluster.incarnation for name, cluster in reader.view.items()}
                views: list[tuple[bool, Mapping[str, object]]] = [(False, view)]
                if not batch.events:
                    views.append((True, {name: cluster.content for name, cluster in reader.view.items()}))
                for is_heartbeat, seen in views:
                    who, other = known.setdefault((batch.revision, is_heartbeat), (history.who, seen))
                    if seen != other:
                        names = sorted(name for name in seen.keys() | other.keys() if seen.get(name) != other.get(name))
                        yield f"at {batch.revision} {who} and {history.who} differ in {', '.join(names)}"


def snapshots(history: History) -> Iterator[str]:
    """Yield invalid snapshots.

    A snapshot is of one revision and has each cluster once; a subscriber without a revision receives one.
    """
    for stream in history.streams:
        inside: Batch | None = None
        names: set[str] = set()
        is_known = bool(stream.resumed_from)
        for batch in stream.batches:
            if batch.reset:
                inside, names, is_known = batch, set(), True
            elif not is_known and (batch.events or batch.synced):
                yield f"a stream without a resume revision began at {batch.revision} without a snapshot"
            if inside is None:
                continue
            if _revision(batch) != _revision(inside):
                yield f"the snapshot at {inside.revision} continues at another revision, {batch.revision}"
            for event in batch.events:
                if event.kind != "ENGAGED" or event.name in names:
                    yield f"{event} is in the snapshot at {inside.revision}, which has each cluster once, as ENGAGED"
                names.add(event.name)
            if batch.synced:
                inside = None


def no_phantoms(history: History, upstream: Upstream) -> Iterator[str]:
    """Yield disengagements without a reason upstream, by an event or by absence from a snapshot."""
    reader = Reader()
    for stream in history.streams:
        reader.start(stream)
        for batch in stream.batches:
            before = dict(reader.view)
            is_snapshot = batch.reset or reader.snapshot is not None
            list(reader.take(batch))
            if is_snapshot:
                left_out = [old for name, old in before.items() if getattr(reader.view.get(name), "uid", "") != old.uid]
                for cluster in left_out:
                    if not upstream.causes(cluster.name, cluster.uid, history.label_selector):
                        yield f"{cluster.name} was left out of the snapshot at {batch.revision}, but is engaged"
                continue
            for event in batch.events:
                if event.kind == "DISENGAGED":
                    causes = upstream.causes(event.name, event.uid, history.label_selector)
                    if event.reason not in causes:
                        yield f"{event} was received; the causes upstream are {', '.join(sorted(causes)) or 'none'}"


def _is_before(one: Position | None, other: Position | None) -> bool:
    """Return whether a position is older than another one; positions of different daemon runs have no order."""
    return one is not None and other is not None and one.epoch == other.epoch and one.revision < other.revision


def _revision(batch: Batch) -> int | None:
    return batch.position.revision if batch.position else None


def alternating(events: Iterable[Event]) -> Iterator[str]:
    """Yield clusters whose ENGAGED and DISENGAGED do not alternate, with other events in between, across daemons."""
    engaged: set[str] = set()
    for event in events:
        name = event.cluster.name
        if (name in engaged) == (event.type is EventType.ENGAGED):
            yield f"{event.type.name} of {name} while the cluster was {'' if name in engaged else 'not '}engaged"
        if event.type is EventType.ENGAGED:
            engaged.add(name)
        elif event.type is EventType.DISENGAGED:
            engaged.discard(name)


def breaches(histories: Iterable[History], upstream: Upstream, *, forgets: bool = False) -> list[str]:
    """Return the violations of all validators, each with the names of the validator and of the subscriber."""
    histories = list(histories)
    found = [f"agreeing: {breach}" for breach in agreeing(histories)]
    for history in histories:
        subscriber = f"{history.who}: "
        for judge in (ordered, atomic, snapshots):
            found += [f"{judge.__name__}: {subscriber}{breach}" for breach in judge(history)]
        for judged in (unique, forward, reliable, no_phantoms):
            found += [f"{judged.__name__}: {subscriber}{breach}" for breach in judged(history, upstream)]
        found += [f"resumable: {subscriber}{breach}" for breach in resumable(history, forgets=forgets)]
    return found
