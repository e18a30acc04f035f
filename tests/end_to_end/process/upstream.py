"""The record of upstream changes, with which subscribers' histories are compared."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from milo_kube.label_selector import Selector, parse
from tests.end_to_end.process.history import Labels


@dataclass(frozen=True)
class State:
    """The fields of an object that decide on its engagement."""

    uid: str
    ready: bool
    labels: Labels


States: TypeAlias = dict[str, list[State | None]]

Cause: TypeAlias = str
"""The name of a DisengageReason that changes of the object explain."""


class Upstream:
    def __init__(self, label_selector: str = "") -> None:
        """Start without objects; `label_selector` is the daemon's own."""
        self.went_back = False
        """Whether a backup was restored, so that later versions may be lower."""
        self._covered = parse(label_selector)
        self._states: States = {}

    @property
    def states(self) -> States:
        """Return every recorded state, by name."""
        return self._states

    def continue_from(self, states: States) -> None:
        """Begin with states that were recorded earlier."""
        self._states = {name: [*history] for name, history in states.items()}

    def note(self, name: str, state: State | None) -> None:
        """Record a state, or None for a deletion."""
        self._states.setdefault(name, []).append(state)

    def names(self) -> list[str]:
        """Return the names of existing objects."""
        return [name for name, states in self._states.items() if states[-1] is not None]

    def has(self, name: str) -> bool:
        return self._states.get(name, [None])[-1] is not None

    def __getitem__(self, name: str) -> State:
        state = self._states[name][-1]
        assert state is not None
        return state

    def engaged(self, label_selector: str) -> dict[str, State]:
        """Return the clusters that a subscriber with this filter should have now."""
        selector = parse(label_selector)
        return {
            name: states[-1]
            for name, states in self._states.items()
            if states[-1] is not None and states[-1].ready and self._shown(states[-1], selector)
        }

    def causes(self, name: str, uid: str, label_selector: str) -> set[Cause]:
        """Return every reason for which the object could have been disengaged."""
        selector = parse(label_selector)
        found: set[Cause] = set()
        for state in self._since(name, uid):
            if state is None:
                found.add("DELETED")
            elif state.uid != uid:
                found |= {"DELETED", "REPLACED"}
            else:
                found |= {"NOT_READY"} if not state.ready else set()
                found |= {"LABELS_CHANGED"} if not self._shown(state, selector) else set()
        return found

    def _shown(self, state: State, selector: Selector) -> bool:
        return self._covered.matches(state.labels) and selector.matches(state.labels)

    def _since(self, name: str, uid: str) -> Iterable[State | None]:
        """Yield the object's states since its first engagement."""
        states = iter(self._states.get(name, ()))
        for state in states:
            if state is not None and state.uid == uid and state.ready:
                break
        return states
