"""Comparison of received events with expected ones, evaluated after each event."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from milo_discovery import Event, EventType
from tests.end_to_end.scenarios.steps import Expected

UidsOf: TypeAlias = Callable[[str], Sequence[str]]
"""All UIDs that a name has had so far, with the current one last."""

_TRANSITIONS = (EventType.ENGAGED, EventType.DISENGAGED)


@dataclass(frozen=True)
class Fulfilled:
    """Every expected event was received, and no other."""


@dataclass(frozen=True)
class Awaiting:
    """Some events are missing, and none is wrong so far."""

    missing: str


@dataclass(frozen=True)
class Contradicted:
    """An event is wrong, which no later event can change."""

    why: str


Verdict: TypeAlias = Fulfilled | Awaiting | Contradicted


def transitions(events: Iterable[Event]) -> list[Event]:
    return [event for event in events if event.type in _TRANSITIONS]


def compare(expected: Sequence[Expected], seen: Sequence[Event], uids_of: UidsOf) -> Verdict:
    """Compare events; their order matters within a cluster, and not between clusters."""
    missing = []
    for name in dict.fromkeys(
        [expected_event.cluster for expected_event in expected] + [event.cluster.name for event in seen]
    ):
        wanted = [expected_event for expected_event in expected if expected_event.cluster == name]
        got = [event for event in seen if event.cluster.name == name]
        for position, event in enumerate(got):
            if position >= len(wanted):
                return Contradicted(f"received {tell(event)}, which was not expected")
            is_last = position == len(wanted) - 1
            if why := _difference(wanted[position], event, uids_of(name), is_last=is_last):
                return Contradicted(why)
        missing += [tell_expected(expected_event) for expected_event in wanted[len(got) :]]
    return Awaiting(", ".join(missing)) if missing else Fulfilled()


def _difference(wanted: Expected, event: Event, uids: Sequence[str], *, is_last: bool) -> str:
    if event.type.name != wanted.happening:
        return f"received {tell(event)} where {tell_expected(wanted)} was expected"
    if wanted.reason and event.reason.name != wanted.reason:
        return f"received {tell(event)}, want the reason {wanted.reason}"
    if wanted.endpoint:
        # An earlier event may be of any former object; the last one is of the current object.
        current = uids[-1:] if is_last and wanted.happening == "ENGAGED" else uids
        endpoints = [wanted.endpoint.replace("{uid}", uid) for uid in current or ("{uid}",)]
        if event.cluster.endpoint not in endpoints:
            return f"{tell(event)} has the endpoint {event.cluster.endpoint}, want {endpoints[-1]}"
    return ""


def tell_expected(expected: Expected) -> str:
    return f"{expected.happening} {expected.cluster}" + (f" ({expected.reason})" if expected.reason else "")


def tell(event: Event) -> str:
    reason = f" ({event.reason.name})" if event.type is EventType.DISENGAGED else ""
    return f"{event.type.name} {event.cluster.name}{reason}"


def tell_all(events: Iterable[Event]) -> str:
    return ", ".join(map(tell, events)) or "nothing"
