"""From a reflector's findings to commits: lists are compared, and what seems gone is asked about first."""

from collections.abc import Iterable, Iterator
from itertools import islice

from milo_discoveryd.model.observation import Observation
from milo_discoveryd.reflect.deletions import Answer, Gone, Question, Suspicions
from milo_discoveryd.reflect.machine import (
    Changed,
    Finding,
    Listed,
    ListEnded,
    ListStarted,
    Oddity,
    Relisting,
    Suspected,
    Unlisted,
)
from milo_discoveryd.registry.registry import Done, Registry

PORTION = 500
"""How many findings are taken in one go, before others get their turn: a few milliseconds' worth."""


class Intake:
    """Until the first list is complete, nothing is published, so that list is applied as it comes.

    A later one is held back until it is complete, and then only what it changes is applied.
    """

    def __init__(self, registry: Registry, suspicions: Suspicions) -> None:
        self._registry = registry
        self._suspicions = suspicions
        self._listed: set[str] = set()
        self._staged: dict[str, Observation] = {}
        self.synced = False

    def take(self, findings: Iterable[Finding], now: float, wall: float) -> Iterator[list[Done]]:
        """Applies the findings in portions, so that thousands of them don't hold up everybody else.

        `now` is the clock that questions are due by, `wall` the time that people are told.
        """
        rest = iter(findings)
        while portion := list(islice(rest, PORTION)):
            yield from self._portion(portion, now, wall)

    def answer(self, question: Question, answer: Answer, now: float, wall: float) -> list[Done]:
        settled = self._suspicions.answered(question, answer, now)
        return [] if settled is None else self._registry.commit((settled,), wall)

    def _portion(self, portion: list[Finding], now: float, wall: float) -> Iterator[list[Done]]:
        changed: list[Observation | Gone] = []
        for finding in portion:
            match finding:
                case Changed(observation):
                    self._suspicions.clear(observation.name)
                    changed.append(observation)
                case Suspected(name, uid):
                    # Whether it is engaged depends on what came before it.
                    yield self._registry.commit(changed, wall)
                    changed = []
                    self._suspect(name, uid, now, wall)
                case Listed(observation):
                    self._listed.add(observation.name)
                    if not self.synced or self._registry.would_change(observation):
                        self._staged[observation.name] = observation
                case Unlisted(name):
                    self._listed.discard(name)
                    self._staged.pop(name, None)
                case ListStarted():
                    self._listed, self._staged = set(), {}
                    if not self.synced:
                        self._registry.clear()
                case ListEnded():
                    yield from self._apply_list(now, wall)
                case Relisting() | Oddity():
                    pass
        if self._staged and not self.synced:
            changed += self._staged.values()
            self._staged = {}
            yield self._registry.commit(changed, wall, listed=True)
        elif changed:
            yield self._registry.commit(changed, wall)

    def _apply_list(self, now: float, wall: float) -> Iterator[list[Done]]:
        staged = iter(self._staged.values())
        while portion := list(islice(staged, PORTION)):
            yield self._registry.commit(portion, wall, listed=True)
        for name in self._listed:
            self._suspicions.clear(name)
        for name, uid in [(name, uid) for name, uid in self._registry.present() if name not in self._listed]:
            self._suspect(name, uid, now, wall)
        self._listed, self._staged = set(), {}
        self.synced = True

    def _suspect(self, name: str, uid: str, now: float, wall: float) -> None:
        record = self._registry[name]
        if record is None or (uid and uid != record.uid):
            return
        if record.engaged:
            self._suspicions.suspect(name, record.uid, now)
        else:
            self._registry.commit((Gone(name, record.uid),), wall)
