"""Objects that claim the UID of one project: the earlier claim stands, and without an earlier one none does."""

from collections.abc import Iterable

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready
from milo_discoveryd.registry import registry as module
from milo_discoveryd.registry.events import EventType
from milo_discoveryd.registry.pending_deletions import ConfirmedDeletion
from milo_discoveryd.registry.registry import ObjectState, Registry
from tests.unit.registry.fleets import at, outside, readable_log, target

BANK = "uid-of-bank"


class Told(Registry):
    """A registry that keeps what it refused, and takes one thing per second."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.seconds = 0.0
        super().__init__(readable_log(), refused=lambda seen: self.refused.append(seen.name))

    def see(self, *seen: Observation | ConfirmedDeletion, listed: bool = False) -> list[tuple[EventType, str]]:
        self.seconds += 1
        done = self.commit(seen, at(self.seconds), consistent=listed, listed=listed)
        return [(each.type, each.cluster.target.name) for each in done]

    def engaged_names(self) -> set[str]:
        return {each.target.name for each in self.clusters()}

    def state(self, name: str) -> ObjectState | None:
        record = self[name]
        return None if record is None else record.state


def claims(name: str, uid: str = BANK, version: str = "1") -> Ready:
    """A ready object whose label claims this project."""
    return Ready(f"object-{name}", version, target(name, uid))


def unready(name: str, uid: str = BANK, version: str = "2") -> NotReady:
    return NotReady(name, f"object-{name}", version, "not yet", uid)


def deleted(name: str) -> ConfirmedDeletion:
    return ConfirmedDeletion(name, f"object-{name}")


def of(*seen: Observation) -> Told:
    fleet = Told()
    for each in seen:
        fleet.see(each)
    return fleet


def test_earlier_claim_wins_and_later_object_is_malformed() -> None:
    fleet = of(claims("bank"), claims("shop-x"))
    assert fleet.engaged_names() == {"bank"}
    assert fleet.state("shop-x") is ObjectState.MALFORMED
    assert fleet.refused == ["shop-x"]
    assert fleet.see(claims("bank", version="2")) == []
    assert fleet.state("bank") is ObjectState.READY


def test_object_that_changes_its_claim_keeps_its_cluster_and_does_not_get_the_other() -> None:
    fleet = of(claims("bank"), claims("shop-x", "uid-of-shop"))
    assert fleet.see(claims("shop-x", BANK, "2")) == []
    (shop,) = (each for each in fleet.clusters() if each.target.name == "shop-x")
    assert shop.target.uid == "uid-of-shop"
    assert fleet.refused == ["shop-x"]


def test_object_that_is_not_ready_holds_its_claim() -> None:
    assert of(unready("bank"), claims("shop-x")).engaged_names() == set()
    fleet = of(claims("bank"), unready("bank"), claims("shop-x"), claims("bank", version="3"))
    assert fleet.engaged_names() == {"bank"}
    assert fleet.see(unready("shop-x")) == []
    assert fleet.see(claims("shop-x", version="3")) == []


def test_object_without_a_label_holds_its_own_uid() -> None:
    own = Ready("own-uid", "1", target("bank", "own-uid"))
    assert of(own, claims("shop-x", "own-uid")).engaged_names() == {"bank"}
    assert of(NotReady("bank", "own-uid", "1", ""), claims("shop-x", "own-uid")).engaged_names() == set()


@pytest.mark.parametrize("names", [("bank", "shop-x"), ("shop-x", "bank")])
def test_uid_claims_in_one_list_are_all_rejected(names: Iterable[str]) -> None:
    fleet = Told()
    fleet.see(*(claims(name) for name in names), listed=True)
    fleet.list_ended()
    assert fleet.engaged_names() == set()
    assert fleet.count(ObjectState.MALFORMED) == 2
    assert sorted(fleet.refused) == ["bank", "shop-x"]
    assert fleet.see(claims("bank", version="2")) == [], "nor does an event make one of them the earlier"
    assert sorted(fleet.refused) == ["bank", "shop-x"], "and it is audited once"


def test_list_that_contains_both_does_not_end_the_earlier_claim() -> None:
    fleet = of(claims("bank"))
    fleet.see(claims("shop-x"), claims("bank", version="2"), listed=True)
    assert fleet.engaged_names() == {"bank"}


def test_third_claim_is_malformed_too() -> None:
    fleet = Told()
    fleet.see(claims("bank"), claims("shop-x"), claims("shop-y"), listed=True)
    assert fleet.engaged_names() == set()
    fleet.list_ended()
    assert fleet.see(deleted("shop-x")) == []
    assert fleet.see(deleted("shop-y")) == [(EventType.ENGAGED, "bank")]


def test_object_is_engaged_when_the_other_claim_ends() -> None:
    fleet = Told()
    fleet.see(claims("bank"), claims("shop-x"), listed=True)
    fleet.list_ended()
    assert fleet.see(claims("shop-x", "uid-of-shop", "2")) == [
        (EventType.ENGAGED, "bank"),
        (EventType.ENGAGED, "shop-x"),
    ]


def test_claim_passes_on_when_the_holder_is_deleted() -> None:
    fleet = of(claims("bank"), claims("shop-x"))
    assert fleet.see(deleted("bank")) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "shop-x")]
    fleet = of(claims("bank"), claims("shop-x"), unready("shop-x"))
    assert fleet.see(deleted("bank")) == [(EventType.DISENGAGED, "bank")]
    assert fleet.see(claims("shop-x", version="3")) == [(EventType.ENGAGED, "shop-x")]
    fleet = of(claims("bank"), claims("shop-x"), claims("shop-y"))
    assert fleet.see(deleted("bank")) == [(EventType.DISENGAGED, "bank")], (
        "it is not known which of the two was earlier"
    )


def test_later_claim_that_ends_changes_nothing() -> None:
    fleet = of(claims("bank"), claims("shop-x"))
    assert fleet.see(deleted("shop-x")) == []
    assert fleet.see(claims("shop-y")) == []
    assert fleet.engaged_names() == {"bank"}


def test_disengaged_claimant_says_why() -> None:
    fleet = Told()
    fleet.see(claims("bank"), claims("shop-x"), listed=True)
    record = fleet["bank"]
    assert record is not None
    assert record.transitions[-1].reason is DisengageReason.NOT_READY
    assert BANK in record.message


def test_project_that_is_created_again_under_its_name_keeps_its_claim() -> None:
    fleet = of(claims("bank"))
    again = Ready("another-object", "5", target("bank", BANK))
    assert fleet.see(again) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "bank")]


def test_restored_claim_is_the_earlier_one() -> None:
    fleet = Told()
    fleet.restore(claims("bank"), 0.0, at(0))
    assert fleet.restore(claims("shop-x"), 0.0, at(0)) == []
    fleet.see(claims("shop-x"), claims("bank"), listed=True)
    assert fleet.engaged_names() == {"bank"}


def test_claim_ends_with_the_record_of_an_object_that_left_the_selector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABSENT_RECORDS_KEPT", 1)
    fleet = of(claims("bank"), outside("bank", "2", "object-bank"), claims("shop-x"))
    assert fleet.engaged_names() == set()
    fleet.see(outside("other", "2", "object-other"))
    assert fleet.see(claims("shop-x", version="2")) == [(EventType.ENGAGED, "shop-x")]


def test_cleared_registry_knows_no_claim() -> None:
    fleet = of(claims("bank"))
    fleet.clear()
    assert fleet.see(claims("shop-x")) == [(EventType.ENGAGED, "shop-x")]


def test_malformed_object_keeps_its_claim() -> None:
    broken = Malformed("bank", "object-bank", "2", "nonsense")
    assert of(claims("bank"), broken, claims("shop-x")).engaged_names() == {"bank"}
