"""Objects that claim one project UID or address: the earliest wins; if their order is unknown, all are rejected."""

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from milo_discoveryd.engagement import claims as claims_module
from milo_discoveryd.engagement import engagement as module
from milo_discoveryd.engagement.claims import Claimant, FleetEngagements, ValueClaim, ValueClaims, address
from milo_discoveryd.engagement.engagement import ClusterStates, Engagements
from milo_discoveryd.engagement.not_ready import NotReadyClusters
from milo_discoveryd.engagement.subscriber import SubscriberKey, Subscription
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.log.filter import Filter
from milo_discoveryd.model.cluster import DeclaredTarget, DisengageReason, FileTarget, Target
from milo_discoveryd.model.object_state import ObjectState
from milo_discoveryd.model.observation import Malformed, NotReady, Observation, Ready
from milo_discoveryd.objects.pending_deletions import ConfirmedDeletion
from milo_discoveryd.objects.store import ObjectPosition, Positions, SourcePositions
from tests.unit.fleet.fleets import at, outside, readable_log, target

BANK = "uid-of-bank"


class Claimants:
    """The clusters of sources that share a change log and claims; the clock advances by a second per commit."""

    def __init__(self, *servers: str) -> None:
        log, self.fleet = readable_log(), FleetEngagements()
        self.refused: list[str] = []
        self.sources: list[Engagements] = []
        self.claimants: list[Claimant] = []
        for number, server in enumerate(servers or ("eu", "us")):
            self.sources.append(Engagements(log, report=lambda seen: self.refused.append(seen.name)))
            self.claimants.append(self.fleet.add_source(f"{number}", self.sources[-1], server))
        positions = Positions()
        self.positions = [SourcePositions(positions, [0]) for _ in self.sources]
        self.seconds = 0.0

    def commit(self, source: int, *seen: Observation | ConfirmedDeletion, listed: bool = False) -> list[Event]:
        self.seconds += 1
        position = position_of(self.positions[source], len(seen), listed=listed)
        return self.fleet.commit(self.claimants[source], ClusterStates(seen, position), at(self.seconds))

    def restore(self, source: int, *seen: Ready) -> None:
        self.fleet.restore(self.claimants[source], ((observation, 0.0) for observation in seen), 0.0)


class RecordingEngagements(Claimants):
    """The clusters of one source, with a list of rejected names."""

    def __init__(self) -> None:
        super().__init__("eu")
        (self.engagements,) = self.sources

    def observe(self, *seen: Observation | ConfirmedDeletion, listed: bool = False) -> list[tuple[EventType, str]]:
        """Apply observations of a watch, or of the first list with `listed`; return the changes."""
        return [(event.type, event.cluster.target.name) for event in self.commit(0, *seen, listed=listed)]

    def list_ended(self) -> None:
        self.positions[0].end_list(0)

    def engaged_names(self) -> set[str]:
        return {cluster.target.name for cluster in self.engagements.clusters()}

    def state(self, name: str) -> ObjectState | None:
        record = self.engagements[name]
        return None if record is None else record.state


def position_of(positions: SourcePositions, count: int, *, listed: bool) -> ObjectPosition:
    if not listed:
        positions.end_list(0)
    return positions.of_list() if listed else positions.of_changes(count)


def claims(name: str, uid: str = BANK, version: str = "1") -> Ready:
    """Return a ready object whose label claims the project with this UID."""
    return Ready(f"object-{name}", version, target(name, uid))


def unready(name: str, uid: str = BANK, version: str = "2") -> NotReady:
    return NotReady(name, f"object-{name}", version, "not yet", uid)


def deleted(name: str) -> ConfirmedDeletion:
    return ConfirmedDeletion(name, f"object-{name}")


def registry_with(*seen: Observation) -> RecordingEngagements:
    fleet = RecordingEngagements()
    for observation in seen:
        fleet.observe(observation)
    return fleet


def test_earlier_uid_claim_wins_and_later_object_is_malformed() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x"))
    assert fleet.engaged_names() == {"bank"}
    assert fleet.state("shop-x") is ObjectState.MALFORMED
    assert fleet.refused == ["shop-x"]
    assert fleet.observe(claims("bank", version="2")) == []
    assert fleet.state("bank") is ObjectState.READY


def test_claim_depends_on_the_order_if_one_list_with_all_claims_would_make_it_invalid() -> None:
    fleet = registry_with(claims("mall", "uid-of-mall"), claims("bank"), claims("shop-x"))
    assert not fleet.fleet.depends_on_order("unknown")
    assert not fleet.fleet.depends_on_order("mall")
    assert fleet.fleet.depends_on_order("bank")
    fleet.observe(deleted("shop-x"))
    assert not fleet.fleet.depends_on_order("bank")


def test_claim_of_the_server_itself_does_not_depend_on_the_order() -> None:
    found = Claimants("eu", "eu")
    found.commit(0, Ready(BANK, "1", target("bank", BANK)))
    found.commit(1, claims("shop-x"))
    assert not found.fleet.depends_on_order("bank")


def test_object_that_switches_to_an_already_claimed_uid_keeps_its_cluster() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x", "uid-of-shop"))
    assert fleet.observe(claims("shop-x", BANK, "2")) == []
    (shop,) = (cluster for cluster in fleet.engagements.clusters() if cluster.target.name == "shop-x")
    assert shop.target.uid == "uid-of-shop"
    assert fleet.refused == ["shop-x"]


@pytest.mark.parametrize("uid", [BANK, "uid-of-shop"])
def test_engaged_cluster_with_contested_uid_is_disengaged_when_another_object_claims_its_uid(uid: str) -> None:
    fleet = registry_with(claims("bank"), claims("shop-x", "uid-of-shop"), claims("shop-x", BANK, "2"))
    assert fleet.engaged_names() == {"bank", "shop-x"}
    assert fleet.observe(claims("shop-y", uid)) == [(EventType.DISENGAGED, "shop-x")]
    assert fleet.engaged_names() == {"bank"}


def test_contested_object_keeps_no_claim_on_a_value_that_it_never_held() -> None:
    """Such claims would be of any number."""
    fleet = registry_with(claims("bank"), claims("mall", "uid-of-mall"), claims("shop-x", "uid-of-shop"))
    for version in range(2, 40, 2):
        fleet.observe(claims("shop-x", BANK, f"{version}"), claims("shop-x", "uid-of-mall", f"{version + 1}"))
    assert fleet.observe(claims("shop-y")) == []
    assert fleet.observe(deleted("bank")) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "shop-y")]
    assert fleet.engaged_names() == {"mall", "shop-x", "shop-y"}
    assert fleet.observe(claims("shop-z", "uid-of-shop")) == [(EventType.DISENGAGED, "shop-x")]
    assert {claim.value for claim in fleet.fleet._kinds[0]._by_key["shop-x"]} == {"uid-of-shop", "uid-of-mall"}


def test_not_ready_object_keeps_its_uid_claim() -> None:
    assert registry_with(unready("bank"), claims("shop-x")).engaged_names() == set()
    fleet = registry_with(claims("bank"), unready("bank"), claims("shop-x"), claims("bank", version="3"))
    assert fleet.engaged_names() == {"bank"}
    assert fleet.observe(unready("shop-x")) == []
    assert fleet.observe(claims("shop-x", version="3")) == []


@pytest.mark.parametrize("uid", ["uid-of-mall", ""])
def test_not_ready_object_with_another_uid_keeps_its_claim_until_it_is_ready(uid: str) -> None:
    fleet = RecordingEngagements()
    fleet.engagements.not_ready = NotReadyClusters(grace_s=60.0)
    fleet.observe(claims("bank"))
    fleet.observe(claims("shop-x"))
    assert fleet.observe(unready("bank"), unready("bank", uid, "3")) == []
    assert fleet.engaged_names() == {"bank"}
    assert fleet.observe(claims("bank", "uid-of-mall", "4")) == [
        (EventType.UPDATED, "bank"),
        (EventType.ENGAGED, "shop-x"),
    ]


def test_not_ready_object_that_replaces_another_one_does_not_keep_its_claim() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x"))
    again = NotReady("bank", "another-object", "5", "not yet", "uid-of-mall")
    assert fleet.observe(again) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "shop-x")]


def test_object_without_a_uid_label_claims_its_own_uid() -> None:
    own = Ready("own-uid", "1", target("bank", "own-uid"))
    assert registry_with(own, claims("shop-x", "own-uid")).engaged_names() == {"bank"}
    assert registry_with(NotReady("bank", "own-uid", "1", ""), claims("shop-x", "own-uid")).engaged_names() == set()


@pytest.mark.parametrize("names", [("bank", "shop-x"), ("shop-x", "bank")])
def test_conflicting_uid_claims_in_one_list_are_all_rejected(names: Iterable[str]) -> None:
    fleet = RecordingEngagements()
    fleet.observe(*(claims(name) for name in names), listed=True)
    fleet.list_ended()
    assert fleet.engaged_names() == set()
    assert fleet.engagements.count(ObjectState.MALFORMED) == 2
    assert sorted(fleet.refused) == ["bank", "shop-x"]
    assert fleet.observe(claims("bank", version="2")) == [], "an update does not make a claim the earlier one"
    assert sorted(fleet.refused) == ["bank", "shop-x"], "the conflict is audited once"


def test_list_with_both_claimants_keeps_the_earlier_uid_claim() -> None:
    fleet = registry_with(claims("bank"))
    fleet.observe(claims("shop-x"), claims("bank", version="2"), listed=True)
    assert fleet.engaged_names() == {"bank"}


def test_object_is_engaged_once_both_conflicting_uid_claims_have_ended() -> None:
    fleet = RecordingEngagements()
    fleet.observe(claims("bank"), claims("shop-x"), claims("shop-y"), listed=True)
    assert fleet.engaged_names() == set()
    fleet.list_ended()
    assert fleet.observe(deleted("shop-x")) == []
    assert fleet.observe(deleted("shop-y")) == [(EventType.ENGAGED, "bank")]


def test_number_of_claim_comparisons_grows_linearly_with_claims_on_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    precedes = ValueClaims._precedes

    def counted(claims: ValueClaims, own: ValueClaim, other: ValueClaim) -> bool:
        nonlocal compared
        compared += 1
        return precedes(claims, own, other)

    def comparisons(objects: int) -> int:
        before, fleet, names = compared, RecordingEngagements(), [f"bank-{number:03}" for number in range(objects)]
        fleet.observe(*map(claims, names), listed=True)
        fleet.list_ended()
        assert fleet.engaged_names() == set()
        for name in names[:-1]:
            fleet.observe(deleted(name))
        assert fleet.engaged_names() == {names[-1]}
        return compared - before

    monkeypatch.setattr(ValueClaims, "_precedes", counted)
    assert comparisons(400) < 2.5 * comparisons(200)


@pytest.mark.untraced
def test_cpu_time_of_a_claim_does_not_grow_with_the_others_on_its_value() -> None:
    def time_of(objects: int) -> float:
        fleet, names = RecordingEngagements(), [f"bank-{number:05}" for number in range(objects)]
        began = time.process_time()
        for uid in (BANK, "uid-of-shop"):
            for name in names:
                fleet.observe(claims(name, uid))
        return (time.process_time() - began) / objects

    assert time_of(16_000) < 3 * min(time_of(1000) for _ in range(3))


def test_object_is_engaged_when_the_conflicting_uid_claim_ends() -> None:
    fleet = RecordingEngagements()
    fleet.observe(claims("bank"), claims("shop-x"), listed=True)
    fleet.list_ended()
    assert fleet.observe(claims("shop-x", "uid-of-shop", "2")) == [
        (EventType.ENGAGED, "shop-x"),
        (EventType.ENGAGED, "bank"),
    ]


def test_update_that_releases_a_uid_precedes_engagement_of_the_next_claimant() -> None:
    fleet = registry_with(claims("shop-x"), claims("bank"))
    assert fleet.observe(claims("shop-x", "uid-of-shop", "2")) == [
        (EventType.UPDATED, "shop-x"),
        (EventType.ENGAGED, "bank"),
    ]


def test_object_drops_its_former_uid_claim_once_its_new_uid_is_uncontested() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x", "uid-of-shop"), claims("shop-y", "uid-of-shop"))
    fleet.observe(claims("shop-x", BANK, "2"))
    assert fleet.engaged_names() == {"bank", "shop-x"}
    assert fleet.observe(deleted("bank")) == [
        (EventType.DISENGAGED, "bank"),
        (EventType.UPDATED, "shop-x"),
        (EventType.ENGAGED, "shop-y"),
    ]


def test_uid_claim_passes_to_other_object_when_its_holder_is_deleted() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x"))
    assert fleet.observe(deleted("bank")) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "shop-x")]
    fleet = registry_with(claims("bank"), claims("shop-x"), unready("shop-x"))
    assert fleet.observe(deleted("bank")) == [(EventType.DISENGAGED, "bank")]
    assert fleet.observe(claims("shop-x", version="3")) == [(EventType.ENGAGED, "shop-x")]
    fleet = registry_with(claims("bank"), claims("shop-x"), claims("shop-y"))
    assert fleet.observe(deleted("bank")) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "shop-x")]


def test_earlier_uid_claim_is_kept_when_a_later_claim_ends() -> None:
    fleet = registry_with(claims("bank"), claims("shop-x"))
    assert fleet.observe(deleted("shop-x")) == []
    assert fleet.observe(claims("shop-y")) == []
    assert fleet.engaged_names() == {"bank"}


def test_message_of_object_disengaged_by_uid_conflict_names_the_contested_uid() -> None:
    fleet = RecordingEngagements()
    fleet.observe(claims("bank"), claims("shop-x"), listed=True)
    record = fleet.engagements["bank"]
    assert record is not None
    assert record.transitions[-1].reason is DisengageReason.NOT_READY
    assert BANK in record.message


def test_recreated_project_keeps_its_uid_claim() -> None:
    fleet = registry_with(claims("bank"))
    again = Ready("another-object", "5", target("bank", BANK))
    assert fleet.observe(again) == [(EventType.DISENGAGED, "bank"), (EventType.ENGAGED, "bank")]


def test_restored_uid_claim_takes_precedence_over_claims_in_the_first_list() -> None:
    fleet = RecordingEngagements()
    fleet.restore(0, claims("bank"))
    fleet.observe(claims("shop-x"), claims("bank"), listed=True)
    assert fleet.engaged_names() == {"bank"}


def test_uid_claim_of_object_outside_selector_ends_when_its_record_is_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORGETTABLE_RECORDS_KEPT", 1)
    fleet = registry_with(claims("bank"), outside("bank", "2", "object-bank"), claims("shop-x"))
    assert fleet.engaged_names() == set()
    assert fleet.observe(outside("other", "2", "object-other")) == [(EventType.ENGAGED, "shop-x")]


def test_malformed_object_keeps_its_uid_claim() -> None:
    broken = Malformed("bank", "object-bank", "2", "nonsense")
    assert registry_with(claims("bank"), broken, claims("shop-x")).engaged_names() == {"bank"}


# --- over several sources ---


class Sources(Claimants):
    """The clusters of two sources."""

    def observe(self, source: int, *seen: Observation | ConfirmedDeletion, listed: bool = False) -> set[str]:
        """Apply observations; return the engaged clusters of all sources."""
        self.commit(source, *seen, listed=listed)
        return self.engaged

    @property
    def engaged(self) -> set[str]:
        return {cluster.target.name for source in self.sources for cluster in source.clusters()}


def declared(name: str, url: str, version: str = "1", **fields: Any) -> Ready:
    """Return an object that contains the address of its cluster."""
    target = DeclaredTarget(
        name=name, uid=f"object-{name}", place=(url,), object_namespace="", object_name=name, **fields
    )
    return Ready(f"object-{name}", version, target)


def object_of(name: str, uid: str, host: str, version: str = "1") -> Ready:
    """Return an object that claims a UID and an address."""
    seen = declared(name, f"https://{host}.example.com", version)
    return msgspec.structs.replace(seen, target=msgspec.structs.replace(seen.target, uid=uid))


def own(name: str, uid: str) -> Ready:
    return Ready(uid, "1", target(name, uid))


def test_earlier_uid_claim_of_another_source_wins() -> None:
    sources = Sources()
    assert sources.observe(0, claims("bank")) == {"bank"}
    assert sources.observe(1, claims("thief")) == {"bank"}
    assert sources.observe(0, deleted("bank")) == {"thief"}


def test_same_uid_claimed_in_first_lists_of_two_sources_is_rejected_in_both() -> None:
    sources = Sources()
    sources.observe(0, claims("bank"), listed=True)
    sources.positions[0].end_list(0)
    assert sources.observe(1, claims("thief"), listed=True) == set()
    assert sources.observe(0, deleted("bank")) == {"thief"}


@pytest.mark.parametrize("lists_first", [0, 1])
@pytest.mark.parametrize(("of_projects", "engaged"), [(0, "bank"), (1, "pcp-bank")])
def test_project_in_two_sources_of_the_same_milo_is_engaged_from_the_source_configured_first(
    of_projects: int, engaged: str, lists_first: int
) -> None:
    """A Project has its own UID, and the ProjectControlPlane of another API server has that UID in a label."""
    sources = Sources()
    for source in (lists_first, 1 - lists_first):
        seen = own("bank", "uid-1") if source == of_projects else claims("pcp-bank", "uid-1")
        sources.observe(source, seen, listed=True)
    assert sources.engaged == {engaged}


def test_restored_uid_claim_takes_precedence_over_the_first_list_of_another_source() -> None:
    sources = Sources()
    sources.restore(0, claims("bank"))
    sources.observe(1, claims("thief"), listed=True)
    assert sources.observe(0, claims("bank"), listed=True) == {"bank"}


def test_claims_in_an_earlier_list_take_precedence_over_claims_in_a_later_list() -> None:
    sources = Sources()
    sources.observe(0, claims("bank"), listed=True)
    sources.positions[0].end_list(0)
    assert sources.observe(0, claims("bank", version="2"), claims("thief"), listed=True) == {"bank"}


@pytest.mark.parametrize("first", [0, 1])
def test_object_in_two_sources_of_one_server_is_engaged_in_both(first: int) -> None:
    sources = Sources("milo", "milo")
    seen = [Ready("one-object", "1", target(name, BANK)) for name in ("a#bank", "b#bank")]
    sources.observe(first, seen[first])
    assert sources.observe(1 - first, seen[1 - first]) == {"a#bank", "b#bank"}


def test_equal_uids_of_objects_on_different_servers_are_different_claims() -> None:
    sources = Sources()
    copied = Ready("object-bank", "1", target("thief", BANK))
    assert sources.observe(0, claims("bank")) == {"bank"}
    assert sources.observe(1, copied) == {"bank"}


def test_object_uid_takes_precedence_over_earlier_uid_label_of_another_object_only_on_the_same_server() -> None:
    for server, engaged in (("eu", "bank"), ("us", "thief")):
        sources = Sources("eu", server)
        assert sources.observe(0, claims("thief", "uid-1")) == {"thief"}
        assert sources.observe(1, own("bank", "uid-1")) == {engaged}


def test_not_ready_object_keeps_its_own_uid_when_the_label_of_another_object_claims_it() -> None:
    sources = Sources("eu", "eu")
    sources.observe(0, NotReady("bank", "uid-1", "1", "not yet"))
    assert sources.observe(1, claims("thief", "uid-1")) == set()


def test_later_claim_on_an_address_is_rejected() -> None:
    sources = Sources()
    assert sources.observe(0, declared("bank", "https://bank.example.com")) == {"bank"}
    assert sources.observe(1, declared("thief", "https://BANK.example.com:443/")) == {"bank"}
    record = sources.sources[1]["thief"]
    assert record is not None
    assert record.message == "address bank.example.com:443 is also claimed by another object"
    assert sources.observe(1, declared("thief", "https://thief.example.com", "2")) == {"bank", "thief"}


@pytest.mark.parametrize(("uid", "address"), [(BANK, "free"), ("uid-free", "bank")])
def test_cluster_that_stays_engaged_keeps_its_claims_if_one_new_claim_is_rejected(uid: str, address: str) -> None:
    """One claim of the new state is valid, and the other is not."""
    sources = Sources()
    sources.observe(0, object_of("bank", BANK, "bank"), object_of("shop", "uid-shop", "shop"))
    assert sources.observe(0, object_of("shop", uid, address, "2")) == {"bank", "shop"}
    assert sources.observe(1, object_of("x", "uid-shop", "x"), object_of("y", "uid-y", "shop")) == {"bank"}
    assert sources.observe(0, object_of("shop", "uid-free", "free", "3")) == {"bank", "shop", "x", "y"}


def test_contested_object_that_claims_a_former_value_again_keeps_the_claims_of_its_engaged_state() -> None:
    sources = Sources()
    sources.observe(0, object_of("bank", BANK, "bank"), object_of("shop", "uid-shop", "shop"))
    for version, uid in enumerate(("uid-a", "uid-shop", "uid-b"), 2):
        assert sources.observe(0, object_of("shop", uid, "bank", f"{version}")) == {"bank", "shop"}
    assert sources.observe(1, object_of("x", "uid-shop", "x")) == {"bank"}


@pytest.mark.untraced
def test_no_sequence_of_changes_engages_two_clusters_with_the_same_uid_or_address() -> None:
    for seed in range(200):
        choice, sources = random.Random(seed), Sources()
        for step in range(30):
            source = choice.randrange(2)
            name = f"{source}#{choice.choice('abc')}"
            uid, address, kind = choice.choice("1234"), choice.choice("1234"), choice.random()
            seen: Observation | ConfirmedDeletion = object_of(name, uid, address, f"{step}")
            if kind > 0.7:
                seen = deleted(name) if kind > 0.85 else unready(name, uid, f"{step}")
            sources.observe(source, seen)
            targets = [cluster.target for engagements in sources.sources for cluster in engagements.clusters()]
            for values in ([each.uid for each in targets], [each.endpoint for each in targets]):
                assert len({*values}) == len(values), f"seed {seed}, step {step}: {sorted(values)}"


def test_configured_address_takes_precedence_over_the_address_of_an_object() -> None:
    sources = Sources()
    url = "https://bank.example.com"
    assert sources.observe(0, declared("thief", url)) == {"thief"}
    assert sources.observe(1, Ready("u", "1", target("bank", "u"))) == {"bank"}
    sources = Sources()
    sources.observe(0, Ready("u", "1", target("bank", "u")))
    assert sources.observe(1, declared("thief", url)) == {"bank"}


def test_not_ready_object_keeps_its_address_claim_and_makes_no_new_claim() -> None:
    sources = Sources()
    sources.observe(1, NotReady("thief", "object-thief", "1", "not yet"))
    sources.observe(0, declared("bank", "https://bank.example.com"))
    sources.observe(0, NotReady("bank", "object-bank", "2", "not yet"))
    assert sources.observe(1, declared("thief", "https://bank.example.com", "2")) == set()


def test_object_without_an_address_keeps_its_uid_claim_if_other_objects_have_addresses() -> None:
    sources = Sources()
    sources.observe(0, declared("shop", "https://shop.example.com"))
    sources.observe(0, unready("bank"))
    assert sources.observe(1, claims("thief")) == {"shop"}
    assert sources.observe(0, claims("bank", version="3")) == {"shop", "bank"}


def test_clusters_from_kubeconfig_files_may_share_an_address() -> None:
    sources = Sources()
    shared = ("https://one.example.com",)
    for source, name in enumerate(("a", "b")):
        seen = FileTarget(name=name, uid=name, place=shared, object_namespace="", object_name=name)
        sources.observe(source, Ready(name, "1", seen))
    sources.observe(0, declared("c", "https://c.example.com"))
    assert sources.engaged == {"a", "b", "c"}


def of_one_object(name: str) -> Ready:
    return Ready("one-object", "1", target(name, BANK))


def of_its_uid(name: str) -> Ready:
    return Ready(BANK, "1", target(name, BANK))


def in_a_file(name: str) -> Ready:
    seen = FileTarget(name=name, uid=name, place=("https://bank.test",), object_namespace="", object_name=name)
    return Ready(name, "1", seen)


@pytest.mark.parametrize("seen", [of_one_object, of_its_uid, in_a_file])
def test_claims_that_do_not_conflict_are_compared_with_few_others(
    seen: Callable[[str], Ready], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by measurement: a server that shows one object by 80,000 names took 34 ms for each."""
    compared, is_same_object = 0, claims_module._is_same_object

    def counted(claim: ValueClaim, other: ValueClaim) -> bool:
        nonlocal compared
        compared += 1
        return is_same_object(claim, other)

    def comparisons(objects: int) -> int:
        before, fleet = compared, registry_with(object_of("other", "uid-of-other", "other"))
        found = [seen(f"bank-{number:03}") for number in range(objects)]
        for observation in found:
            fleet.observe(observation)
        assert len(fleet.engaged_names()) == objects + 1
        for observation in found[:-1]:
            assert isinstance(observation.target, Target)
            fleet.observe(ConfirmedDeletion(observation.target.name, observation.uid))
        assert fleet.engaged_names() == {f"bank-{objects - 1:03}", "other"}
        return compared - before

    monkeypatch.setattr(claims_module, "_is_same_object", counted)
    assert comparisons(400) <= 2.5 * comparisons(200)


def test_all_names_of_one_object_are_engaged_once_it_replaces_the_object_with_the_earliest_claim() -> None:
    fleet = registry_with(claims("bank"), of_one_object("shop-x"), of_one_object("shop-y"))
    assert fleet.engaged_names() == {"bank"}
    fleet.observe(of_one_object("bank"))
    assert fleet.engaged_names() == {"bank", "shop-x", "shop-y"}
    fleet.observe(ConfirmedDeletion("shop-y", "one-object"), claims("thief"))
    assert fleet.engaged_names() == {"bank", "shop-x"}
    fleet.observe(ConfirmedDeletion("bank", "one-object"), ConfirmedDeletion("shop-x", "one-object"))
    assert fleet.engaged_names() == {"thief"}


def test_draining_cluster_whose_claim_is_refused_is_disengaged_at_once() -> None:
    sources = Sources()
    sources.observe(0, claims("thief"), listed=True)
    sources.sources[0].assigned_elsewhere = lambda _: "member b owns it"
    sources.sources[0].releases.open(
        Subscription(SubscriberKey("caller", "s"), "", Filter(confirms_releases=True)), 0.0
    )
    sources.sources[0].reassign("thief", 30.0, at(1))
    assert sources.engaged == {"thief"}
    assert sources.observe(1, claims("bank"), listed=True) == set()
    record = sources.sources[0]["thief"]
    assert record is not None
    assert record.state is ObjectState.READY or record.state is ObjectState.MALFORMED


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example.com/", "a.example.com:443"),
        ("https://A.example.com:6443/clusters/b", "a.example.com:6443/clusters/b"),
        ("https://a.example.com.:6443", "a.example.com:6443"),
        ("https://[0:0:0:0:0:0:0:1]:6443", "::1:6443"),
        ("https://[::ffff:192.0.2.1]", "192.0.2.1:443"),
    ],
)
def test_addresses_are_normalized_for_comparison(url: str, expected: str) -> None:
    assert address(Target(name="x", uid="u", place=(url,))) == expected


@pytest.mark.parametrize("servers", [("core", "core"), ("core", "other-address-of-core")])
def test_sources_are_duplicates_if_most_objects_of_one_claim_what_objects_of_the_other_claim(
    servers: tuple[str, str],
) -> None:
    found = Claimants(*servers)
    for number in range(9):
        uid = f"uid-{number}"
        found.commit(0, Ready(uid, "1", target(f"project-{number}", uid)))
        found.commit(1, Ready(f"object-{number}", "1", target(f"plane-{number}", uid if number else "its-own")))
    assert [found.fleet.duplicate_of(claimant) for claimant in found.claimants] == ["", "0"]
    assert [found.fleet.new_duplicate_of(found.claimants[1]) for _ in range(3)] == ["0", "", ""]


def test_sources_that_share_few_projects_are_no_duplicates_until_they_share_most() -> None:
    found, told = Claimants(), list[str]()
    for number in range(20):
        found.commit(0, claims(f"shop-{number}", f"uid-{number}"))
        found.commit(1, claims(f"plane-{number}", f"uid-{number}" if number in {0, 5} else f"own-{number}"))
        told.append(found.fleet.new_duplicate_of(found.claimants[1]))
    assert not any(told[1:]), "two of many"
    for number in range(20):
        found.commit(1, claims(f"plane-{number}", f"uid-{number}", "2"))
        told.append(found.fleet.new_duplicate_of(found.claimants[1]))
    assert told.count("0") == 1


def test_objects_of_one_source_that_claim_one_uid_make_no_duplicate() -> None:
    found = Claimants()
    found.commit(1, claims("bank"), claims("shop-x"), claims("shop-y"))
    assert found.fleet.duplicate_of(found.claimants[1]) == ""


@pytest.mark.untraced
def test_comparing_sources_costs_little_while_many_objects_claim_one_uid() -> None:
    """Whoever can write objects can make them claim one UID."""
    found = Claimants()
    found.commit(0, claims("bank"))
    found.commit(1, *(claims(f"shop-{number}") for number in range(8000)))
    began = time.process_time()
    assert found.fleet.duplicate_of(found.claimants[1]) == "0"
    assert time.process_time() - began < 0.3


def test_object_without_a_claim_contests_no_source() -> None:
    claims = FleetEngagements()._kinds
    assert [kind.ranks_of_others("unknown") for kind in claims] == [set() for _ in claims]


@pytest.mark.parametrize(
    ("what", "rival"),
    [
        ("states_uids", lambda: claims("rival", "uid-of-rival")),
        ("states_addresses", lambda: declared("rival", "https://rival.test")),
    ],
)
def test_claims_are_stored_from_the_start_if_objects_of_a_source_contain_them(
    what: str, rival: Callable[[], Ready], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by measurement: to store those of 100,000 clusters, once one object states such a value, took 1.8 s."""
    fleet, log = FleetEngagements(), readable_log()
    of_projects = fleet.add_source("projects", Engagements(log), "milo")
    stating = fleet.add_source("stating", Engagements(log), "milo", **{what: True})
    monkeypatch.setattr(fleet, "_begin_claims", None)
    position = ObjectPosition(1)
    own = Ready("u1", "1", target("bank", "u1"))
    assert len(fleet.commit(of_projects, ClusterStates([own], position), at(1.0))) == 1
    assert len(fleet.commit(stating, ClusterStates([rival()], position), at(2.0))) == 1
