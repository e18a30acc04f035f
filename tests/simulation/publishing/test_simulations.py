"""Seeded simulations of the publishers of a shard group, and of one without: no live object is deleted, and none is
forgotten."""

from collections.abc import Callable

import pytest

from milo_publishing import objects, publication, records
from tests.simulation.publishing.faults import KINDS
from tests.simulation.publishing.replica import GROUP
from tests.simulation.publishing.simulation_run import Simulation, simulate

SEEDS = 42
SEEDS_TO_DETECT = 1000


def test_simulation_deletes_no_live_object_and_forgets_none() -> None:
    outcomes = [simulate(seed, group) for seed in range(SEEDS) for group in ("", GROUP)]
    assert [(outcome.seed, outcome.breaches) for outcome in outcomes if outcome.breaches] == []
    assert {fault.split()[1] for outcome in outcomes for fault in outcome.faults} == set(KINDS)
    assert sum(outcome.deletions for outcome in outcomes[::2]) > 3 * SEEDS
    assert sum(outcome.deletions for outcome in outcomes[1::2]) > 3 * SEEDS
    assert sum(outcome.conflicts for outcome in outcomes) > SEEDS


def test_simulation_is_reproducible_by_seed() -> None:
    assert simulate(7) == simulate(7)
    assert simulate(7) != simulate(8)


def _detects(prepare: Callable[[Simulation], None] = lambda _: None) -> bool:
    return any(simulate(seed, prepare=prepare).breaches for seed in range(SEEDS_TO_DETECT))


def _ignore_versions(world: Simulation) -> None:
    world.api.has_versions = False


def _hide_finalizers(world: Simulation) -> None:
    world.api.hides_finalizers = True


def _let_others_judge(world: Simulation) -> None:
    world.only_owners_judge = False


def _keep_evidence_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    observe = records.observe
    monkeypatch.setattr(
        records,
        "observe",
        lambda record, found, *of, **given: observe(record, found, *of, **given | {"by_us": True}),
    )


def _write_no_incarnation(monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = objects._annotations

    def without(*arguments):  # type: ignore[no-untyped-def]
        return {key: text for key, text in annotations(*arguments).items() if key != objects.INCARNATION}

    monkeypatch.setattr(objects, "_annotations", without)


def _keep_late_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "EVIDENCE_S", 1e9)


def _believe_stale_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "is_followed", lambda *_: True)


def _ignore_what_other_members_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records.Record, "is_lacked", property(lambda record: isinstance(record.end, records.Missing)))


def _believe_other_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_recognized", lambda _record, found, *_: found)


@pytest.mark.parametrize("mutant", [_ignore_versions, _hide_finalizers, _let_others_judge])
def test_simulation_detects_servers_without_what_publishers_rely_on(
    mutant: Callable[[Simulation], None],
) -> None:
    assert _detects(mutant)


@pytest.mark.parametrize(
    "mutate",
    [
        _keep_evidence_of_other_versions,
        _write_no_incarnation,
        _keep_late_evidence,
        _believe_stale_sources,
        _ignore_what_other_members_lack,
        _believe_other_clients,
    ],
)
def test_simulation_detects_a_mutant(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mutate(monkeypatch)
    assert _detects()
