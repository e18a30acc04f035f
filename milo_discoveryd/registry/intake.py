"""From a reflector's findings to commits: lists are compared, and what seems gone is asked about first."""

from collections.abc import Iterable, Iterator
from itertools import islice

from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Observation, Outside, Ready
from milo_discoveryd.reflect.pending_deletions import (
    ConfirmationRequest,
    ConfirmationResult,
    ConfirmedDeletion,
    PendingDeletions,
)
from milo_discoveryd.reflect.reflector import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    SourceEvent,
    Unlisted,
)
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.registry import ObjectState, Registry
from milo_discoveryd.registry.removal_guard import ConfirmAtRate, ConfirmEach, GuardDecision, HeldRemovals, RemovalGuard

PORTION = 250
"""How many findings are taken in one go, before others may get their turn: a few milliseconds' worth."""
WITNESSES = 3


class Intake:
    """Until the first list is complete, nothing is published, so that list is applied as it comes.

    A later one is held back until it is complete, and then only what it changes is applied. Without a guard, whatever
    it lacks is asked about at once.
    """

    def __init__(
        self, registry: Registry, pending_deletions: PendingDeletions, guard: RemovalGuard | None = None
    ) -> None:
        self._registry = registry
        self._pending_deletions = pending_deletions
        self._guard = guard
        self._released: set[str] = set()
        self._witnesses: tuple[tuple[str, str], ...] = ()
        self._is_foreign = False
        """The last list was another server's, and so is what its watch tells."""
        self._listed: set[str] = set()
        self._staged: dict[str, Observation] = {}
        self.synced = False
        self.is_restored = False
        """What is known is what an earlier run knew: this one has seen no complete list yet that it believes."""

    def take(self, findings: Iterable[SourceEvent], now: Moment) -> Iterator[list[Event]]:
        """Applies the findings in portions, so that thousands of them don't hold up everybody else."""
        rest = iter(findings)
        while portion := list(islice(rest, PORTION)):
            yield from self._portion(portion, now)

    def restore(self, kept: Iterable[tuple[Ready, float]], now: Moment) -> list[Event]:
        """Begins with what an earlier run of the daemon knew, and since when it was engaged: the first list is then
        compared with that, like any later one."""
        self.synced = self.is_restored = True
        return [self._registry.restore(seen, engaged_at, now) for seen, engaged_at in kept]

    @property
    def held(self) -> HeldRemovals | None:
        """What keeps clusters engaged that a list lacks, or keeps that list from being believed."""
        if self._guard is None or not (self._pending_deletions.held or self.is_restored):
            return None
        return self._guard.held

    @property
    def witnesses(self) -> tuple[tuple[str, str], ...]:
        """Some that are there, for all that is known, by name and UID: a server that has none of them is another one.

        Of one alone it may have been missed that it went.
        """
        if len(self._witnesses) < WITNESSES or not all(map(self._is_witness, self._witnesses)):
            self._witnesses = tuple(islice(filter(self._is_witness, self._registry.present()), WITNESSES))
        return self._witnesses

    def _is_witness(self, present: tuple[str, str]) -> bool:
        name, uid = present
        return self._pending_deletions.why(name) is None and self._registry.is_present(name, uid)

    def answer(self, question: ConfirmationRequest, answer: ConfirmationResult, now: Moment) -> list[Event]:
        settled = self._pending_deletions.answered(question, answer, now.steady)
        if question.name in self._released and self._is_there(settled):
            self._take_back(now.steady)
        return [] if settled is None else self._registry.commit((settled,), now, consistent=True)

    def _portion(self, portion: list[SourceEvent], now: Moment) -> Iterator[list[Event]]:
        changed: list[Observation] = []
        for finding in portion:
            match finding:
                case ObjectChanged() | DeletionReported() if self._is_foreign:
                    pass
                case ObjectChanged(observation):
                    if self._registry.is_news(observation):
                        self._pending_deletions.clear(observation.name)
                    changed.append(observation)
                case DeletionReported(name, uid):
                    # Whose name it is depends on what came before it.
                    yield self._registry.commit(changed, now)
                    changed = []
                    self._suspect(name, uid, now)
                case ListStarted() | Listed() | Unlisted():
                    self._gather(finding)
                case ListEnded(versions_went_back):
                    yield from self._apply_list(now, versions_went_back=versions_went_back)
                case _:
                    pass  # Relisting and Oddity are for people
        if not self.synced:
            changed, self._staged = list(self._staged.values()), {}
        if changed:
            yield self._registry.commit(changed, now, consistent=not self.synced)

    def _gather(self, finding: ListStarted | Listed | Unlisted) -> None:
        match finding:
            case ListStarted():
                self._listed, self._staged = set(), {}
                if not self.synced:
                    self._registry.clear()
            case Listed(observation):
                self._listed.add(observation.name)
                if not self.synced or self._registry.would_change(observation):
                    self._staged[observation.name] = observation
            case gone_again:
                self._listed.discard(gone_again.name)
                self._staged.pop(gone_again.name, None)

    def _apply_list(self, now: Moment, *, versions_went_back: bool) -> Iterator[list[Event]]:
        missing = [(name, uid) for name, uid in self._registry.present() if name not in self._listed]
        engaged = [(name, uid) for name, uid in missing if self._is_engaged(name)]
        # What was remembered may be long over: whoever was told of its successor must not be told of it again.
        replaced = [] if self.is_restored else list(self._replaced())
        ruling: GuardDecision = ConfirmEach()
        if self._guard is not None:
            is_foreign = bool(self._listed) and not self.is_restored and not any(map(self._is_engaged, self._listed))
            ruling = self._guard.judge(
                engaged + replaced,
                self._registry.engaged,
                versions_went_back=versions_went_back,
                now=now.steady,
                is_foreign=is_foreign,
            )
        self._is_foreign = isinstance(ruling, HeldRemovals) and ruling.is_foreign
        if self._is_foreign:
            self._listed, self._staged = set(), {}
        if not isinstance(ruling, ConfirmEach):
            engaged += replaced
            for name, _ in replaced:
                self._staged.pop(name, None)
        staged = iter(self._staged.values())
        while portion := list(islice(staged, PORTION)):
            yield self._registry.commit(portion, now, consistent=True)
        # Others had their turn between two portions: an answer may have settled what became of some.
        missing, engaged = (
            [(name, uid) for name, uid in each if self._registry.is_present(name, uid)] for each in (missing, engaged)
        )
        self._pending_deletions.clear_all(self._listed)
        if not self._is_foreign:
            # Those that nobody is engaged with are nobody's loss, and are asked about at once.
            for name, uid in missing:
                if not self._is_engaged(name):
                    self._pending_deletions.suspect(name, uid, now.steady)
            self._registry.list_ended((name for name, _ in missing) if versions_went_back else ())
        self._doubt(engaged, ruling, now.steady)
        self._listed, self._staged = set(), {}
        self.synced, self.is_restored = True, self.is_restored and self.held is not None

    def _doubt(self, engaged: list[tuple[str, str]], ruling: GuardDecision, now: float) -> None:
        self._released = {name for name, _ in engaged} if isinstance(ruling, ConfirmAtRate) else set()
        match ruling:
            case ConfirmEach():
                for name, uid in engaged:
                    self._pending_deletions.suspect(name, uid, now)
            case HeldRemovals():
                for name, uid in engaged:
                    self._pending_deletions.hold(name, uid, now, ruling.message)
            case release:
                for place, (name, uid) in enumerate(engaged):
                    self._pending_deletions.suspect(name, uid, now, ask_at=now + place / release.per_second)

    def _is_engaged(self, name: str) -> bool:
        record = self._registry[name]
        return record is not None and record.engaged

    def _replaced(self) -> Iterator[tuple[str, str]]:
        """Engaged ones under whose names the list has other objects."""
        for name, seen in self._staged.items():
            record = self._registry[name]
            if record is not None and record.engaged and seen.uid not in ("", record.uid):
                yield name, record.uid

    def _is_there(self, settled: ConfirmedDeletion | Observation | None) -> bool:
        if settled is None or isinstance(settled, ConfirmedDeletion | Outside):
            return False
        record = self._registry[settled.name]
        return record is not None and settled.uid in ("", record.uid)

    def _take_back(self, now: float) -> None:
        """What was asked about on the word of lists is held again: one that they lack is there."""
        assert self._guard is not None
        held = self._guard.contradicted(now)
        for name in self._released:
            record = self._registry[name]
            if record is not None and self._pending_deletions.why(name) is not None:
                self._pending_deletions.hold(name, record.uid, now, held.message)
        self._released.clear()

    def _suspect(self, name: str, uid: str, now: Moment) -> None:
        record = self._registry[name]
        if record is not None and record.state is not ObjectState.GONE and uid in ("", record.uid):
            self._pending_deletions.suspect(name, record.uid, now.steady)
