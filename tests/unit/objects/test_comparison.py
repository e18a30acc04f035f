"""The facts of a complete list, compared with the known objects."""

from typing import Any

import pytest

from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.objects.comparison import Comparison, compare
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.objects.staged_list import StagedList
from milo_discoveryd.objects.store import ObjectStore
from milo_discoveryd.objects.trust import ListFacts, Nothing, Trust, Verified
from tests.unit.fleet.fleets import finish, malformed, not_ready, outside, ready

KNOWN = Trust(Verified(), version="100")


class Known:
    """The objects `a` to `f` at version 50, of which the last two have never been ready."""

    def __init__(self) -> None:
        self.store, self.pending = ObjectStore(), PendingDeletions(lambda: 0.0)
        self.store.apply_watched([*(ready(name, "50") for name in "abcd"), not_ready("e", "50"), not_ready("f", "50")])

    def compared(self, *listed: ObservedObject, version: str = "100", trust: Trust = KNOWN) -> Comparison:
        staged = StagedList(self.store, self.pending)
        staged.start()
        for observation in listed:
            staged.add(observation)
        return finish(compare(staged, self.store, self.pending, trust, version=version, held_since=10.0))

    def facts(self, *listed: ObservedObject, **given: Any) -> ListFacts:
        return self.compared(*listed, **given).facts


def same(names: str, version: str = "50") -> list[ObservedObject]:
    return [ready(name, version) if name in "abcd" else not_ready(name, version) for name in names]


def facts(**different: Any) -> ListFacts:
    return ListFacts(**{"version": "100", "listed": 6, "engaged": 4, **different})


def test_complete_list_lacks_nothing() -> None:
    compared = Known().compared(*same("abcdef"))
    assert compared.facts == facts()
    assert (compared.missing, compared.judged, compared.regressed) == ([], [], {})


def test_only_objects_that_were_ready_once_count_as_missing() -> None:
    compared = Known().compared(*same("abc"))
    assert compared.facts == facts(listed=3, missing=1)
    assert sorted(compared.missing) == [("d", "u1"), ("e", "u1"), ("f", "u1")]
    assert compared.judged == [("d", "u1")]


def test_object_under_another_uid_counts_as_missing_and_is_no_missing_object() -> None:
    compared = Known().compared(*same("abcef"), ready("d", "90", uid="u2"))
    assert compared.facts == facts(missing=1)
    assert (compared.missing, compared.judged, compared.replacing) == ([], [("d", "u1")], {"d": ("u2", "90")})
    assert Known().facts(*same("abcef"), malformed("d", "90", uid="")) == facts(), "its UID could not be read"


def test_object_whose_deletion_was_announced_is_not_judged() -> None:
    known = Known()
    known.store.apply_watched([ready("d", "60", deletion_requested_at=7.0)])
    compared = known.compared(*same("abcef"))
    assert (compared.facts, compared.announced, compared.judged) == (facts(listed=5, announced=1), {"d"}, [])
    behind = known.compared(*same("abcef"), version="99")
    assert behind.facts == facts(version="99", listed=5, missing=1, is_behind=True)


@pytest.mark.parametrize(
    ("older", "is_regressed"),
    [
        (not_ready("d", "40"), True),
        (outside("d", "40"), True),
        (ready("d", "40", labels={"env": "old"}), True),
        (ready("d", "40", uid="u0"), True),
        (ready("d", "40"), False),
        (malformed("d", "40"), False),
        (not_ready("e", "40"), False),
    ],
)
def test_older_state_of_an_established_object_is_regressed(older: ObservedObject, is_regressed: bool) -> None:
    listed = [*same("abcdef".replace(older.name, "")), older]
    compared = Known().compared(*listed)
    assert compared.facts == facts(missing=int(is_regressed), regressed=int(is_regressed))
    assert compared.judged == compared.missing == ([("d", "u1")] if is_regressed else [])
    assert compared.replacing == {}
    assert Known().facts(*listed, trust=Trust(Verified(), version="100", accepted_at=0.0)).regressed == 0


def test_objects_without_a_version_are_regressed_in_an_older_list_only() -> None:
    known = Known()
    known.store.set_version("d", "")
    listed = [*same("abcef"), not_ready("d", "40")]
    assert known.facts(*listed, version="99").regressed == 1
    assert known.facts(*listed).regressed == 0


def test_object_that_is_held_until_accepted_is_not_missing_again() -> None:
    known = Known()
    known.pending.hold("d", "u1", 0.0, "why", until_accepted=True)
    known.store.set_version("d", "40")
    for listed in (same("abcef"), [*same("abcef"), not_ready("d", "40")]):
        compared = known.compared(*listed)
        assert compared.facts == facts(listed=len(listed), held_until_accepted=1)
        assert (compared.missing, compared.judged) == ([("d", "u1")], [])
    assert known.facts(*same("abcef"), not_ready("d", "60")) == facts(), "a newer state"
    accepted = known.facts(*same("abcef"), trust=Trust(Verified(), version="100", accepted_at=0.0))
    assert accepted == facts(listed=5, missing=1, held=1)


def test_object_counts_as_held_once_it_has_been_missing_long_enough() -> None:
    known = Known()
    known.pending.hold("c", "u1", 10.0, "why")
    known.pending.hold("d", "u1", 10.1, "why")
    assert known.facts(*same("abef")) == facts(listed=4, missing=2, held=1)


def test_list_is_foreign_if_it_shows_no_known_object() -> None:
    others = [ready(name, "90", uid="u9") for name in "xyz"]
    assert Known().facts(*others) == facts(listed=3, known=6, missing=4, is_foreign=True)
    assert not Known().facts().is_foreign, "an empty list"
    assert not Known().facts(*others, ready("a", "90", uid="u9")).is_foreign, "the name of an established object"
    assert not Known().facts(*others, not_ready("e", "50")).is_foreign
    assert Known().facts(*others, not_ready("e", "50", uid="u9")).is_foreign, "an object that was never ready"
    for count, is_foreign in ((1, False), (2, True)):
        few = Known()
        few.store = ObjectStore()
        few.store.apply_watched(ready(name) for name in "ab"[:count])
        assert few.facts(*others).is_foreign is is_foreign


@pytest.mark.parametrize(
    ("version", "trust", "is_behind"),
    [
        ("99", KNOWN, True),
        ("100", KNOWN, False),
        ("0", KNOWN, False),
        ("", KNOWN, False),
        ("opaque", KNOWN, False),
        ("99", Trust(Verified(), version="opaque"), False),
        ("49", Trust(Verified()), True),
        ("50", Trust(Verified()), False),
        ("49", Trust(Nothing()), False),
    ],
)
def test_list_is_behind_if_it_is_older_than_the_known_version_or_objects(
    version: str, trust: Trust, is_behind: bool
) -> None:
    assert Known().facts(*same("abcdef"), version=version, trust=trust).is_behind is is_behind
