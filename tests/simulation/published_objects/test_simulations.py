"""Seeded simulations of publishers and readers of a stream: no change is wrong, lost or written twice."""

from collections.abc import Callable
from functools import partial

import pytest

from milo_objects import cluster_publication, publication_records, stream_reader
from milo_objects.messages import ObjectMessage
from milo_objects.publication import StreamPublication
from milo_objects.stream_commands import Command
from tests.simulation.published_objects.faults import KINDS_OF_FAULTS
from tests.simulation.published_objects.simulation_run import Simulation, simulate

SEEDS = 200
LIMITED_SEEDS = 40
SEEDS_TO_DETECT = 800


def test_simulation_loses_no_change_and_publishes_none_that_is_wrong() -> None:
    outcomes = [simulate(seed) for seed in range(SEEDS)]
    assert [(outcome.seed, outcome.breaches) for outcome in outcomes if outcome.breaches] == []
    assert {fault.split()[1] for outcome in outcomes for fault in outcome.faults} == set(KINDS_OF_FAULTS)
    assert sum(outcome.writes for outcome in outcomes) > 50 * SEEDS
    assert sum(outcome.conflicts for outcome in outcomes) > 5 * SEEDS


def test_simulation_of_servers_that_take_no_large_messages_for_some_time() -> None:
    def limit(world: Simulation) -> None:
        world.phases.append("large" * 500)
        for at, most in ((60.0, 2000), (150.0, 1 << 20), (200.0, 2000), (280.0, 1 << 20)):
            world.timeline.at(at, partial(setattr, world, "limit", most))
            world.timeline.at(at, partial(world.stop_server, 1.0))

    outcomes = [simulate(seed, prepare=limit) for seed in range(LIMITED_SEEDS)]
    assert [(outcome.seed, outcome.breaches) for outcome in outcomes if outcome.breaches] == []


def test_simulation_is_reproducible_by_seed() -> None:
    assert simulate(7) == simulate(7)
    assert simulate(7) != simulate(8)


def _detects(prepare: Callable[[Simulation], None] = lambda _: None, *, first: int = 0) -> bool:
    return any(simulate(seed, prepare=prepare).breaches for seed in range(first, first + SEEDS_TO_DETECT))


def test_simulation_detects_a_stream_that_ignores_expected_sequences() -> None:
    def ignore(world: Simulation) -> None:
        world.stream.ignores_expected = True

    assert _detects(ignore)


def _believe_what_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication_records.SubjectRecord, "is_behind", False)


def _sweep_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_publication, "SECOND_LOOK_S", 0.0)


def _resume_always(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = stream_reader.StreamReader.attach
    monkeypatch.setattr(
        stream_reader.StreamReader, "attach", lambda self, _, last, now: attach(self, "the same", last, now)
    )


def _ignore_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stream_reader.StreamReader,
        "_receive_object",
        lambda self, scope, subject, message: (
            scope.scope is not None and self._apply(scope, scope.scope, subject, message)
        ),
    )


def _purge_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectMessage, "differs", lambda self, other: self.gone != other.gone)


def _hear_any_publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = stream_reader.StreamReader.heard
    monkeypatch.setattr(stream_reader.StreamReader, "heard", lambda self, at, now, _: heard(self, at, now))


def _remember_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = StreamPublication.failed

    def remember(self: StreamPublication, command: Command, problem: str, now: float) -> None:
        before = {**self.clusters}
        failed(self, command, problem, now)
        self.clusters = {**before, **self.clusters}

    monkeypatch.setattr(StreamPublication, "failed", remember)


def _disown_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamPublication, "disown", lambda *_: [])


@pytest.mark.parametrize(
    ("mutate", "first"),
    [
        (_believe_what_is_behind, 150),  # few seeds detect these
        (_sweep_at_once, 500),
        (_resume_always, 0),
        (_ignore_epochs, 0),
        (_purge_nothing, 0),
        (_hear_any_publisher, 0),
        (_remember_what_moved, 0),
        (_disown_nothing, 0),
    ],
)
def test_simulation_detects_a_mutant(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None], first: int
) -> None:
    mutate(monkeypatch)
    assert _detects(first=first)
