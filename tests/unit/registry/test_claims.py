"""Several objects that claim the UID of one project: the earlier claim holds; without an earlier one, none does."""

from collections.abc import Iterable

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready
from milo_discoveryd.registry import known_objects as module
from milo_discoveryd.registry.cluster_records import ObjectState
from milo_discoveryd.registry.events import EventType
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.registry import Registry
from tests.unit.registry.fleets import at, outside, readable_log, target

BANK = "uid-of-bank"


class RecordingRegistry(Registry):
    """A registry with a list of rejected names and a clock of one second per call."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.seconds = 0.0
        super().__init__(readable_log(), refused=lambda seen: self.refused.append(seen.name))

    def observe(self, *seen: Observation | ConfirmedDeletion, listed: bool = False) -> list[tuple[EventType, str]]:
        self.seconds += 1
        done = self.commit(seen, at(self.seconds), consistent=listed, listed=listed)
        return [(each.type, each.cluster.target.name) for each in done]

    def engaged_names(self) -> set[str]:
        return {each.target.name for each in self.clusters()}

    def state(self, name: str) -> ObjectState | None:
        record = self[name]
        return None if record is None else record.state


def claims(name: str, uid: str = BANK, version: str = "1") -> Ready:
    """Return a ready object whose label claims this project."""
    return Ready(f"object-{name}", version, target(name, uid))


def unready(name: str, uid: str = BANK, version: str = "2") -> NotReady:
    return NotReady(name, f"object-{name}", version, "not yet", uid)


def deleted(name: str) -> ConfirmedDeletion:
    return ConfirmedDeletion(name, f"object-{name}")


def registry_with(*seen: Observation) -> RecordingRegistry:
    fleet = RecordingRegistry()
    for each in seen:
        fleet.observe(each)
    return fleet


def test_earlier_uid_claim_wins_and_later_object_is_malformed() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x"))
    assert fleet.engaged_names() == {"bank"}
    assert fleet.state("shop-x") is ObjectState.MALFORMED
    assert fleet.refused == ["shop-x"]
    assert fleet.observe(claims("bank", version="2")) == []
    assert fleet.state("bank") is ObjectState.READY


def test_object_that_changes_its_uid_claim_to_a_taken_one_keeps_its_cluster() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x", "uid-of-shop"))
    assert fleet.observe(claims("shop-x", BANK, "2")) == []
    (shop,) = (each for each in fleet.clusters() if each.target.name == "shop-x")
    assert shop.target.uid == "uid-of-shop"
    assert fleet.refused == ["shop-x"]


def test_not_ready_object_keeps_its_uid_claim() -> None:
    assert registry_with(unready("bank"), claims("shop-x")).engaged_names() == set()
    fleet = registry_with(claims("bank"), unready("bank"), claims("shop-x"), claims("bank", version="3"))
    assert fleet.engaged_names() == {"bank"}
    assert fleet.observe(unready("shop-x")) == []
    assert fleet.observe(claims("shop-x", version="3")) == []


def test_object_without_a_uid_label_claims_its_own_uid() -> None:
    own = Ready("own-uid", "1", target("bank", "own-uid"))
    assert registry_with(own, claims("shop-x", "own-uid")).engaged_names() == {"bank"}
    assert registry_with(NotReady("bank", "own-uid", "1", ""), claims("shop-x", "own-uid")).engaged_names() == set()


@pytest.mark.parametrize("names", [("bank", "shop-x"), ("shop-x", "bank")])
def test_conflicting_uid_claims_of_one_list_are_all_rejected(names: Iterable[str]) -> None:
    fleet = RecordingRegistry()
    fleet.observe(*(claims(name) for name in names), listed=True)
    fleet.list_ended()
    assert fleet.engaged_names() == set()
    assert fleet.count(ObjectState.MALFORMED) == 2
    assert sorted(fleet.refused) == ["bank", "shop-x"]
    assert fleet.observe(claims("bank", version="2")) == [], "an event makes neither of them the earlier claim"
    assert sorted(fleet.refused) == ["bank", "shop-x"], "the conflict is audited once"


def test_list_with_both_claimants_keeps_the_earlier_uid_claim() -> None:
    fleet = registry_with(claims("bank"))
    fleet.observe(claims("shop-x"), claims("bank", version="2"), listed=True)
    assert fleet.engaged_names() == {"bank"}


def test_third_object_with_the_same_uid_claim_is_malformed() -> None:
    fleet = RecordingRegistry()
    fleet.observe(claims("bank"), claims("shop-x"), claims("shop-y"), listed=True)
    assert fleet.engaged_names() == set()
    fleet.list_ended()
    assert fleet.observe(deleted("shop-x")) == []
    assert fleet.observe(deleted("shop-y")) == [(EventType.ENGAGED, "bank")]


def test_object_is_engaged_when_the_conflicting_uid_claim_ends() -> None:
    fleet = RecordingRegistry()
    fleet.observe(claims("bank"), claims("shop-x"), listed=True)
    fleet.list_ended()
    assert fleet.observe(claims("shop-x", "uid-of-shop", "2")) == [
        (EventType.ENGAGED, "bank"),
        (EventType.ENGAGED, "shop-x"),
    ]


def test_uid_claim_passes_to_other_object_when_its_holder_is_deleted() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x"))
    assert fleet.observe(deleted("bank")) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "shop-x")]
    fleet = registry_with(claims("bank"), claims("shop-x"), unready("shop-x"))
    assert fleet.observe(deleted("bank")) == [(EventType.DISENGAGED, "bank")]
    assert fleet.observe(claims("shop-x", version="3")) == [(EventType.ENGAGED, "shop-x")]
    fleet = registry_with(claims("bank"), claims("shop-x"), claims("shop-y"))
    assert fleet.observe(deleted("bank")) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "shop-x")]


def test_end_of_later_uid_claim_keeps_the_earlier_one() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x"))
    assert fleet.observe(deleted("shop-x")) == []
    assert fleet.observe(claims("shop-y")) == []
    assert fleet.engaged_names() == {"bank"}


def test_object_disengaged_by_uid_conflict_names_the_other_object() -> None:
    fleet = RecordingRegistry()
    fleet.observe(claims("bank"), claims("shop-x"), listed=True)
    record = fleet["bank"]
    assert record is not None
    assert record.transitions[-1].reason is DisengageReason.NOT_READY
    assert BANK in record.message


def test_recreated_project_keeps_its_uid_claim() -> None:
    fleet = registry_with(claims("bank"))
    again = Ready("another-object", "5", target("bank", BANK))
    assert fleet.observe(again) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "bank")]


def test_restored_uid_claim_is_the_earlier_one() -> None:
    fleet = RecordingRegistry()
    fleet.restore(claims("bank"), 0.0, at(0))
    fleet.observe(claims("shop-x"), claims("bank"), listed=True)
    assert fleet.engaged_names() == {"bank"}


def test_uid_claim_ends_with_evicted_record_of_object_outside_selector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABSENT_RECORDS_KEPT", 1)
    fleet = registry_with(claims("bank"), outside("bank", "2", "object-bank"), claims("shop-x"))
    assert fleet.engaged_names() == set()
    fleet.observe(outside("other", "2", "object-other"))
    assert fleet.observe(claims("shop-x", version="2")) == [(EventType.ENGAGED, "shop-x")]


def test_cleared_registry_has_no_uid_claims() -> None:
    fleet = registry_with(claims("bank"))
    fleet.clear()
    assert fleet.observe(claims("shop-x")) == [(EventType.ENGAGED, "shop-x")]


def test_malformed_object_keeps_its_uid_claim() -> None:
    broken = Malformed("bank", "object-bank", "2", "nonsense")
    assert registry_with(claims("bank"), broken, claims("shop-x")).engaged_names() == {"bank"}
