"""Simulations detect bugs: with a bug in the daemon, at least one of the first 700 simulations fails."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.kubeconfigs.credential_lease import HeldCredential
from milo_discoveryd.kubeconfigs.lease_table import LeaseKey
from milo_discoveryd.kubeconfigs.minter import Minter
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.objects import collection, comparison
from milo_discoveryd.objects.collection import ObjectCollection
from milo_discoveryd.objects.pending_deletions import Absent
from milo_discoveryd.objects.trust import ListFacts, Trust, Verdict, Verified
from milo_discoveryd.watchers.driver import Confirmations
from tests.simulation.seeded.simulation_run import simulate

SEEDS = 700

pytestmark = pytest.mark.nightly  # these test the simulations, which every merge runs


async def _not_there(*_: object) -> Absent:
    return Absent()


def _nothing_held(trust: Trust, facts: ListFacts, *_: object) -> tuple[Trust, Verdict]:
    return Trust(Verified(), version=facts.version), Verdict.CONFIRM


def _no(*_: object) -> bool:
    return False


def _yes(*_: object) -> bool:
    return True


def _nothing(*_: object) -> None:
    return None


def _for_ever(*_: object) -> float:
    return 1000.0


def _of_the_name(minter: Minter, cluster: Cluster, ttl_s: float) -> LeaseKey:
    return LeaseKey(minter.issuer.name, ord(cluster.target.name[0]), ttl_s)


_END_RESTORE = ObjectCollection.end_restore


def _without_version(of: ObjectCollection, *_: object) -> None:
    _END_RESTORE(of)


BUGS: list[tuple[str, type | ModuleType, str, Any]] = [
    ("any-answer-is-not-found", Confirmations, "_confirmed", _not_there),
    ("no-list-is-held", collection, "judge", _nothing_held),
    ("a-lagging-list-is-applied", comparison, "_is_behind", _no),
    ("a-grace-ends-while-the-source-is-lost", NotReadyClusters, "pause", _nothing),
    ("a-restart-forgets-the-version", ObjectCollection, "end_restore", _without_version),
    ("every-revision-can-be-read-from", ChangeLog, "reads_from", _yes),
    ("a-batch-that-waits-for-room-is-lost", Cursor, "return_to", _nothing),
    ("what-has-ended-is-issued", HeldCredential, "left_s", _for_ever),
    ("one-lease-serves-all-clusters-of-a-name", Minter, "key", _of_the_name),
    ("what-a-cluster-had-outlives-it", Minter, "drop", _no),
]


@pytest.mark.parametrize(("of", "name", "becomes"), [pytest.param(*bug, id=name) for name, *bug in BUGS])
def test_seeded_bug_is_detected(
    of: type | ModuleType, name: str, becomes: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of, name, becomes)
    assert any(_ends_badly(seed) for seed in range(SEEDS))


def _ends_badly(seed: int) -> bool:
    try:
        return bool(simulate(seed).breaches)
    except ExceptionGroup:
        return True
