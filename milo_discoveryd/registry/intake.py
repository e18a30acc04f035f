"""From a reflector's findings to commits: lists are compared, and what seems gone is asked about first."""

from collections.abc import Iterable, Iterator
from itertools import islice

from milo_discoveryd.model.moment import Moment
from milo_discoveryd.model.observation import Observation, Outside, Ready
from milo_discoveryd.reflect.deletions import Answer, Gone, Question, Suspicions
from milo_discoveryd.reflect.machine import (
    Changed,
    Finding,
    Listed,
    ListEnded,
    ListStarted,
    Suspected,
    Unlisted,
)
from milo_discoveryd.registry.guard import Ask, Guard, Held, Release, Ruling
from milo_discoveryd.registry.registry import Done, Registry, Standing

PORTION = 500
"""How many findings are taken in one go, before others get their turn: a few milliseconds' worth."""


class Intake:
    """Until the first list is complete, nothing is published, so that list is applied as it comes.

    A later one is held back until it is complete, and then only what it changes is applied. Without a guard, whatever
    it lacks is asked about at once.
    """

    def __init__(self, registry: Registry, suspicions: Suspicions, guard: Guard | None = None) -> None:
        self._registry = registry
        self._suspicions = suspicions
        self._guard = guard
        self._released: set[str] = set()
        self._listed: set[str] = set()
        self._staged: dict[str, Observation] = {}
        self.synced = False
        self.is_remembered = False
        """What is known is what an earlier run knew: this one has seen no complete list yet that it believes."""

    def take(self, findings: Iterable[Finding], now: Moment) -> Iterator[list[Done]]:
        """Applies the findings in portions, so that thousands of them don't hold up everybody else."""
        rest = iter(findings)
        while portion := list(islice(rest, PORTION)):
            yield from self._portion(portion, now)

    def restore(self, kept: Iterable[tuple[Ready, float]], now: Moment) -> list[Done]:
        """Begins with what an earlier run of the daemon knew, and since when it was engaged: the first list is then
        compared with that, like any later one."""
        self.synced = self.is_remembered = True
        return [self._registry.restore(seen, engaged_at, now) for seen, engaged_at in kept]

    @property
    def held(self) -> Held | None:
        """What keeps clusters engaged that a list lacks."""
        return self._guard.held if self._guard is not None and self._suspicions.held else None

    def answer(self, question: Question, answer: Answer, now: Moment) -> list[Done]:
        settled = self._suspicions.answered(question, answer, now.steady)
        is_there = settled is not None and not isinstance(settled, Gone | Outside)
        if is_there and question.name in self._released:
            self._take_back(now.steady)
        return [] if settled is None else self._registry.commit((settled,), now, consistent=True)

    def _portion(self, portion: list[Finding], now: Moment) -> Iterator[list[Done]]:
        changed: list[Observation] = []
        for finding in portion:
            match finding:
                case Changed(observation):
                    if self._registry.is_news(observation):
                        self._suspicions.clear(observation.name)
                    changed.append(observation)
                case Suspected(name, uid):
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

    def _apply_list(self, now: Moment, *, versions_went_back: bool) -> Iterator[list[Done]]:
        staged = iter(self._staged.values())
        while portion := list(islice(staged, PORTION)):
            yield self._registry.commit(portion, now, consistent=True)
        for name in self._listed:
            self._suspicions.clear(name)
        missing = [(name, uid) for name, uid in self._registry.present() if name not in self._listed]
        self._doubt(missing, now.steady, versions_went_back=versions_went_back)
        self._registry.list_ended()
        self._listed, self._staged = set(), {}
        self.synced, self.is_remembered = True, self.is_remembered and self.held is not None

    def _doubt(self, missing: list[tuple[str, str]], now: float, *, versions_went_back: bool) -> None:
        """Those that nobody is engaged with are nobody's loss, and are asked about at once."""
        engaged = []
        for name, uid in missing:
            record = self._registry[name]
            if record is not None and record.engaged:
                engaged.append((name, uid))
            else:
                self._suspicions.suspect(name, uid, now)
        ruling: Ruling = Ask()
        if self._guard is not None:
            ruling = self._guard.judge(engaged, self._registry.engaged, versions_went_back=versions_went_back, now=now)
        self._released = {name for name, _ in engaged} if isinstance(ruling, Release) else set()
        match ruling:
            case Ask():
                for name, uid in engaged:
                    self._suspicions.suspect(name, uid, now)
            case Held():
                for name, uid in engaged:
                    self._suspicions.hold(name, uid, now, ruling.message)
            case release:
                for place, (name, uid) in enumerate(engaged):
                    self._suspicions.suspect(name, uid, now, ask_at=now + place / release.per_second)

    def _take_back(self, now: float) -> None:
        """What was asked about on the word of lists is held again: one that they lack is there."""
        assert self._guard is not None
        held = self._guard.contradicted(now)
        for name in self._released:
            record = self._registry[name]
            if record is not None and self._suspicions.why(name) is not None:
                self._suspicions.hold(name, record.uid, now, held.message)
        self._released.clear()

    def _suspect(self, name: str, uid: str, now: Moment) -> None:
        record = self._registry[name]
        if record is not None and record.standing is not Standing.GONE and uid in ("", record.uid):
            self._suspicions.suspect(name, record.uid, now.steady)
