"""What a list lacks of the fleet, where a guard stands before the intake."""

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.reflect.messages import (
    DeletionReported,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    SourceEvent,
)
from milo_discoveryd.reflect.pending_deletions import ConfirmationResult, Found, NotFound, PendingDeletions
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.intake import Intake
from milo_discoveryd.registry.removal_guard import RemovalGuard, RemovalLimits
from tests.unit.registry.fleets import at, not_ready, outside, ready, registry

FLEET = tuple(ready(name) for name in "abcdef")
LIMITS = RemovalLimits(count=1, share=0.0, verify_after_s=30.0, per_second=1.0)


class Source:
    """With a fleet of six, all ready."""

    def __init__(self, *more: Observation) -> None:
        self.registry = registry()
        self.pending_deletions = PendingDeletions(lambda: 0.0)
        self.intake = Intake(self.registry, self.pending_deletions, RemovalGuard(LIMITS))
        self.now = 0.0
        self.lists(*FLEET, *more)

    def take(self, *findings: SourceEvent) -> list[Event]:
        return [each for portion in self.intake.take(findings, at(self.now)) for each in portion]

    def lists(self, *observations: Observation, versions_went_back: bool = False) -> list[Event]:
        return self.take(ListStarted(), *map(Listed, observations), ListEnded(versions_went_back))

    def asked(self) -> list[str]:
        return [question.name for question in self.pending_deletions.take_due(self.now)]

    def answers(self, answer: ConfirmationResult) -> list[Event]:
        """To all that is asked now."""
        questions = self.pending_deletions.take_due(self.now)
        return [done for each in questions for done in self.intake.resolve(each, answer, at(self.now))]

    @property
    def engaged(self) -> int:
        return self.registry.engaged


def test_an_empty_list_is_held_and_says_why() -> None:
    source = Source()
    source.lists()
    assert source.asked() == []
    assert (source.engaged, source.pending_deletions.held) == (6, 6)
    assert source.intake.held is not None
    why = source.pending_deletions.explain("a")
    assert why is not None
    assert "lacks 6 of 6 engaged clusters" in why[1]


def test_what_a_second_list_lacks_as_well_is_asked_about_at_a_pace_and_goes() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    assert source.intake.held is None
    gone = []
    for second in range(6):
        source.now = 30.0 + second
        gone += source.answers(NotFound())
        assert len(gone) == second + 1
    assert {done.reason for done in gone} == {DisengageReason.DELETED}
    assert source.engaged == 0


def test_what_comes_back_in_a_second_list_was_never_away() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    assert source.lists(*FLEET) == []
    assert (source.engaged, len(source.pending_deletions), source.intake.held) == (6, 0, None)


def test_what_an_event_shows_in_between_is_held_no_more() -> None:
    source = Source()
    source.lists()
    source.take(*(ObjectChanged(ready(name, "2")) for name in "abcdef"))
    assert len(source.pending_deletions) == 0
    assert source.intake.held is None


def test_one_that_is_there_after_all_stops_the_release() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    source.answers(Found(ready("a")))
    source.now = 40.0
    assert source.asked() == []
    assert (source.engaged, source.pending_deletions.held) == (6, 5)
    assert source.intake.held is not None


def test_those_that_were_let_go_before_a_contradiction_are_not_held() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    source.answers(NotFound())
    source.now = 31.0
    source.answers(Found(ready("b")))
    assert (source.engaged, source.pending_deletions.held) == (5, 4)


def test_one_that_has_left_the_selector_contradicts_nothing() -> None:
    source = Source()
    source.lists()
    source.now = 30.0
    source.lists()
    (done,) = source.answers(Found(outside("a")))
    assert done.reason is DisengageReason.LABELS_CHANGED
    source.now = 31.0
    assert source.asked() == ["b"]


def test_where_versions_went_back_one_that_is_missing_stays() -> None:
    source = Source()
    source.lists(*FLEET[1:], versions_went_back=True)
    source.now = 1000.0
    source.lists(*FLEET[1:])
    assert source.asked() == []
    assert source.engaged == 6


def test_what_a_watch_tells_of_is_asked_about_though_it_is_held() -> None:
    source = Source()
    source.lists()
    source.take(DeletionReported("a", "u1"))
    (done,) = source.answers(NotFound())
    assert done.cluster.target.name == "a"
    assert source.pending_deletions.held == 5


def test_what_an_answer_settles_while_the_list_is_applied_is_not_held() -> None:
    source = Source()
    source.take(DeletionReported("a", "u1"))
    [asked] = source.pending_deletions.take_due(source.now)
    portions = source.intake.take((ListStarted(), Listed(ready("b", "2")), ListEnded()), at(source.now))
    next(portions)  # from here on others have their turn
    [left] = source.intake.resolve(asked, Found(outside("a")), at(source.now))
    assert left.reason is DisengageReason.LABELS_CHANGED
    for _ in portions:
        pass
    assert source.pending_deletions.explain("a") is None
    assert source.pending_deletions.held == 4


def test_those_that_nobody_is_engaged_with_are_asked_about_at_once() -> None:
    source = Source(not_ready("x"), not_ready("y"), not_ready("z"))
    source.lists(*FLEET)
    assert sorted(source.asked()) == ["x", "y", "z"]
    assert source.intake.held is None


def test_what_is_remembered_stays_all_that_is_known_while_lists_are_not_believed() -> None:
    source = Source()
    source.intake.restore([], at(0.0))
    source.lists()
    assert source.intake.is_restored
    source.lists(*FLEET)
    assert not source.intake.is_restored


def test_f35_another_list_is_wanted_even_if_all_that_were_held_are_seen_again_meanwhile() -> None:
    """Whoever came while the daemon was away is known to no watch."""
    source = Source()
    source.intake.restore([], at(0.0))
    source.lists()
    source.take(*(ObjectChanged(ready(name, "2")) for name in "abcdef"))
    assert source.pending_deletions.held == 0
    assert source.intake.held is not None
    assert source.intake.held.verify_at == 30.0
    source.lists(*(ready(name, "2") for name in "abcdef"))
    assert (source.intake.is_restored, source.intake.held) == (False, None)


OTHERS = tuple(ready(name, uid="u9") for name in "xyz")


def anew(names: str) -> tuple[Observation, ...]:
    return tuple(ready(name, "9", uid="u9") for name in names)


def test_f21_nothing_of_another_server_s_list_is_for_us() -> None:
    source = Source()
    assert source.lists(*OTHERS) == []
    assert (source.engaged, source.pending_deletions.held) == (6, 6)
    assert source.registry["x"] is None
    assert source.intake.held is not None
    assert "none of the 6 engaged clusters" in source.intake.held.message


def test_f21_nor_is_what_its_watch_tells() -> None:
    source = Source()
    source.lists(*OTHERS)
    assert (
        source.take(ObjectChanged(ready("a", "9", uid="u9")), DeletionReported("b", "u1"), ObjectChanged(OTHERS[0]))
        == []
    )
    assert source.asked() == []


def test_f21_however_often_it_says_so_nobody_is_let_go() -> None:
    source = Source()
    for second in range(0, 1000, 30):
        source.now = float(second)
        assert source.lists(*OTHERS) == []
    assert source.asked() == []
    assert source.engaged == 6


def test_f21_once_our_own_is_back_all_goes_on() -> None:
    source = Source()
    source.lists(*OTHERS)
    source.now = 30.0
    (engaged,) = source.lists(*FLEET[1:], ready("g"))
    assert engaged.cluster.target.name == "g"
    assert source.asked() == ["a"]
    assert source.intake.held is None
    assert [done.cluster.target.name for done in source.take(ObjectChanged(ready("h")))] == ["h"]


def test_f21_an_empty_list_after_it_is_the_first_of_two() -> None:
    source = Source()
    source.lists(*OTHERS)
    source.now = 30.0
    source.lists()
    assert source.asked() == []
    source.now = 60.0
    source.lists()
    assert source.asked() == ["a"]


def test_f19_most_of_the_fleet_made_anew_is_held_and_then_told_one_by_one() -> None:
    source = Source()
    (engaged,) = source.lists(FLEET[0], *anew("bcdef"), ready("g"))
    assert engaged.cluster.target.name == "g"
    assert (source.engaged, source.pending_deletions.held) == (7, 5)
    source.now = 30.0
    source.lists(FLEET[0], *anew("bcdef"), ready("g"))
    told = []
    for place, name in enumerate("bcdef"):
        source.now = 30.0 + place
        told += source.answers(Found(anew(name)[0]))
    assert [each.reason for each in told] == [DisengageReason.REPLACED, None] * 5
    assert len(source.pending_deletions) == 0


def test_f19_few_made_anew_are_told_at_once() -> None:
    source = Source()
    done = source.lists(*FLEET[1:], *anew("a"))
    assert [each.reason for each in done] == [DisengageReason.REPLACED, None]


def test_f35_what_was_remembered_and_is_another_object_by_now_is_told_at_once() -> None:
    source = Source()
    source.intake.restore([], at(0.0))
    done = source.lists(*anew("abcdef"))
    assert [each.reason for each in done] == [DisengageReason.REPLACED, None] * 6
    assert not source.intake.is_restored
