"""From what the reflector finds to what is committed: lists are compared, and what seems gone is asked about first."""

from collections.abc import Iterable

import pytest

from milo_discoveryd.model.cluster import DisengageReason
from milo_discoveryd.model.observation import Observation
from milo_discoveryd.reflect.messages import (
    DeletionReported,
    EventIgnored,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    Relisting,
    SourceEvent,
    Unlisted,
)
from milo_discoveryd.reflect.pending_deletions import (
    ConfirmationRequest,
    ConfirmationResult,
    Found,
    Inconclusive,
    NotFound,
    PendingDeletions,
)
from milo_discoveryd.registry.events import Event
from milo_discoveryd.registry.intake import PORTION, Intake
from milo_discoveryd.registry.registry import ObjectState, Registry
from tests.unit.registry.fleets import (
    at,
    cluster,
    disengaged,
    done,
    engaged,
    malformed,
    not_ready,
    outside,
    ready,
    registry,
    updated,
    wall,
)

DELETED, NOT_READY, LABELS_CHANGED = (
    DisengageReason.DELETED,
    DisengageReason.NOT_READY,
    DisengageReason.LABELS_CHANGED,
)


class Source:
    """A registry that is fed through an intake; `now` is moved by hand."""

    def __init__(self, *listed: Observation) -> None:
        """With a first list of these, unless there are none."""
        self.registry: Registry = registry()
        self.pending_deletions = PendingDeletions(lambda: 0.0)
        self.intake = Intake(self.registry, self.pending_deletions)
        self.now = 0.0
        if listed:
            self.lists(*listed)

    def take(self, *findings: SourceEvent) -> list[Event]:
        return [each for portion in self.intake.take(findings, at(self.now)) for each in portion]

    def lists(self, *observations: Observation) -> list[Event]:
        return self.take(ListStarted(), *map(Listed, observations), ListEnded())

    def asked(self) -> list[str]:
        return [question.name for question in self.questions()]

    def questions(self) -> list[ConfirmationRequest]:
        return self.pending_deletions.take_due(self.now)

    def answer(self, answer: ConfirmationResult) -> list[Event]:
        (question,) = self.questions()
        return self.intake.resolve(question, answer, at(self.now))

    def state(self, name: str = "a") -> ObjectState:
        record = self.registry[name]
        assert record is not None
        return record.state


# --- the first list ---


def test_the_first_list_is_applied_as_it_comes() -> None:
    source = Source()
    assert source.take(ListStarted(), Listed(ready("a"))) == [done(engaged(cluster("a", 2)))]
    assert not source.intake.synced
    assert source.take(Listed(ready("b")), ListEnded()) == [done(engaged(cluster("b", 3)))]
    assert source.intake.synced


def test_a_first_list_that_is_begun_again_begins_with_nothing() -> None:
    source = Source()
    source.take(ListStarted(), Listed(ready("a")), Listed(ready("b")))
    source.lists(ready("b"))
    assert source.registry["a"] is None
    assert source.registry.engaged == 1
    assert source.asked() == []


def test_what_goes_while_the_first_list_comes_is_asked_about_when_it_ended() -> None:
    source = Source()
    source.take(ListStarted(), Listed(ready("a")))
    source.take(Unlisted("a"), ListEnded())
    assert source.registry.engaged == 1
    assert source.answer(NotFound())[0].reason is DELETED


def test_what_goes_in_the_same_breath_was_never_there() -> None:
    source = Source()
    assert source.take(ListStarted(), Listed(ready("a")), Unlisted("a"), ListEnded()) == []
    assert source.registry["a"] is None


def test_a_first_list_may_show_versions_in_any_order() -> None:
    source = Source()
    source.take(ListStarted(), Listed(ready("a", "9")), Listed(ready("a", "5", suspended=True)), ListEnded())
    assert source.registry.outdated == 0


# --- later lists ---


def test_a_later_list_is_held_back_until_it_is_complete() -> None:
    source = Source(ready("a"))
    assert source.take(ListStarted(), Listed(ready("b")), Listed(not_ready("a"))) == []
    assert [each.type.name for each in source.take(ListEnded())] == ["ENGAGED", "DISENGAGED"]


def test_a_list_that_is_given_up_changes_nothing() -> None:
    source = Source(ready("a"))
    source.take(ListStarted(), Listed(ready("b")), Listed(not_ready("a")))
    source.take(Relisting("Expired"))
    assert source.lists(ready("a")) == []
    assert source.registry["b"] is None
    assert source.asked() == []


def test_the_same_list_again_changes_nothing() -> None:
    everything = (ready("a"), not_ready("b"), malformed("c"))
    source = Source(*everything)
    head = source.registry.log.head
    assert source.lists(*everything) == []
    assert source.registry.log.head == head
    assert source.asked() == []


def test_what_is_made_after_a_restore_is_news_though_its_name_was_known_at_a_later_version() -> None:
    source = Source(ready("a", "9"), not_ready("b", "12", uid="before"))
    source.take(ListStarted(), Listed(ready("a", "5")), ListEnded(versions_went_back=True))
    source.answer(NotFound())
    made = source.take(ObjectChanged(ready("b", "7", uid="after")))
    assert [(each.type.name, each.cluster.target.uid) for each in made] == [("ENGAGED", "after")]


@pytest.mark.parametrize(
    ("known", "listed", "told"),
    [
        (not_ready("a", "5"), ready("a", "5"), ["ENGAGED"]),
        (ready("a", "5"), ready("a", "5", suspended=True), ["UPDATED"]),
        (ready("a", "5"), not_ready("a", "5"), ["DISENGAGED"]),
        (ready("a", "5"), ready("a", "5"), []),
        (not_ready("a", "5"), not_ready("a", "5"), []),
    ],
)
def test_a_version_that_a_restored_server_uses_again_is_looked_behind(
    known: Observation, listed: Observation, told: list[str]
) -> None:
    assert [each.type.name for each in Source(known).lists(listed)] == told


def test_a_list_stands_though_versions_went_back() -> None:
    source = Source(ready("a", "100"))
    assert source.lists(ready("a", "50", suspended=True)) == [
        done(updated(cluster(incarnation=2, version="50", suspended=True)))
    ]


def test_what_a_list_does_not_name_is_asked_about_and_stays_meanwhile() -> None:
    source = Source(ready("a"), ready("b"), ready("c"))
    assert source.lists(ready("b")) == []
    assert sorted(source.asked()) == ["a", "c"]
    assert source.registry.engaged == 3


def test_witnesses_are_three_that_are_there_and_beyond_suspicion() -> None:
    source = Source(*(ready(name, uid=f"uid-{name}") for name in "abcd"), not_ready("e", uid="uid-e"))
    first = source.intake.reference_objects
    assert first == (("a", "uid-a"), ("b", "uid-b"), ("c", "uid-c"))
    assert source.intake.reference_objects is first
    source.take(DeletionReported("b", "uid-b"))
    assert source.intake.reference_objects == (("a", "uid-a"), ("c", "uid-c"), ("d", "uid-d"))
    source.take(ObjectChanged(ready("a", "7", uid="another")))
    assert source.intake.reference_objects == (("a", "another"), ("c", "uid-c"), ("d", "uid-d"))
    source.take(
        DeletionReported("c", "uid-c"), DeletionReported("d", "uid-d"), ObjectChanged(outside("a", "8", uid="another"))
    )
    assert source.intake.reference_objects == (("e", "uid-e"),)


def test_there_is_no_witness_where_all_seem_gone() -> None:
    source = Source(ready("a"), ready("b"))
    source.take(DeletionReported("a", "u1"), DeletionReported("b", "u1"))
    assert source.intake.reference_objects == ()


def test_an_empty_list_alone_ends_nothing() -> None:
    source = Source(*(ready(f"a{index}") for index in range(50)))
    assert source.lists() == []
    assert source.registry.engaged == 50


def test_what_a_list_names_is_no_longer_asked_about() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    (question,) = source.questions()
    source.lists(ready())
    assert source.intake.resolve(question, NotFound(), at(0)) == []
    assert source.registry.engaged == 1


def test_what_is_known_to_be_elsewhere_is_not_asked_about_for_each_list() -> None:
    source = Source(ready())
    source.lists()
    source.answer(Found(outside()))
    source.lists()
    assert source.asked() == []


def test_what_was_not_in_the_last_list_and_is_in_this_is_engaged_again_whatever_its_version() -> None:
    source = Source(ready(version="10"))
    source.lists()
    source.answer(NotFound())
    assert source.lists(ready(version="10"))[0].type.name == "ENGAGED"


# --- a restart ---


def restored() -> Source:
    """Begins with `a` and `b`, which an earlier run had engaged at 5."""
    source = Source()
    source.intake.restore([(ready("a"), wall(5)), (ready("b"), wall(5))], at(100))
    return source


def test_what_an_earlier_run_knew_is_engaged_at_once_and_since_then() -> None:
    source = restored()
    assert source.intake.synced
    assert list(source.registry.clusters()) == [cluster("a", 1, engaged_at=5), cluster("b", 2, engaged_at=5)]
    assert [record.uid for record in source.registry.records()] == ["u1", "u1"]


def test_the_first_list_is_then_compared_with_it() -> None:
    source = restored()
    assert source.lists(ready("a"), ready("c", "9")) == [done(engaged(cluster("c", 3, version="9")))]
    assert source.asked() == ["b"]
    assert source.registry.engaged == 3


def test_a_first_list_that_is_given_up_then_changes_nothing() -> None:
    source = restored()
    source.take(ListStarted(), Listed(ready("c")), ListStarted())
    assert source.registry.engaged == 2


# --- what is reported as deleted ---


def test_what_is_reported_as_deleted_is_asked_about_and_stays_meanwhile() -> None:
    source = Source(ready())
    assert source.take(DeletionReported("a", "u1")) == []
    assert source.registry.engaged == 1
    assert source.answer(NotFound()) == [done(disengaged(cluster(incarnation=2), DELETED, "the object was deleted"))]


def test_without_an_answer_it_stays() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Inconclusive("503")) == []
    assert source.registry.engaged == 1
    assert source.pending_deletions.explain("a") == (0.0, "503")
    source.now = 1.0
    assert source.answer(NotFound())[0].reason is DELETED


def test_what_is_still_there_stays() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Found(ready())) == []
    assert source.registry.engaged == 1


@pytest.mark.parametrize(
    ("found", "reason"),
    [(outside(), LABELS_CHANGED), (not_ready(), NOT_READY), (ready(uid="u2"), DisengageReason.REPLACED)],
)
def test_what_is_found_in_another_state_is_told_as_that(found: Observation, reason: DisengageReason) -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Found(found))[0].reason is reason


def test_what_is_found_stands_though_versions_went_back() -> None:
    source = Source(ready(version="100"))
    source.lists()
    assert source.answer(Found(outside(version="50")))[0].reason is LABELS_CHANGED


def test_being_seen_again_settles_it() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    (question,) = source.questions()
    source.take(ObjectChanged(ready(version="5")))
    assert source.intake.resolve(question, NotFound(), at(0)) == []
    assert source.registry.engaged == 1


@pytest.mark.parametrize("version", ["9", "10"])
def test_a_repetition_of_something_old_settles_nothing(version: str) -> None:
    source = Source(ready(version="10"))
    source.take(DeletionReported("a", "u1"), ObjectChanged(ready(version=version)))
    assert source.answer(NotFound())[0].reason is DELETED


def test_what_came_before_the_report_in_the_same_bytes_counts() -> None:
    source = Source(ready("b"))
    assert source.take(ObjectChanged(ready("a")), DeletionReported("a", "u1")) == [done(engaged(cluster("a", 3)))]
    assert source.asked() == ["a"]


def test_a_report_without_a_uid_is_about_whatever_has_the_name() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", ""))
    assert source.asked() == ["a"]


@pytest.mark.parametrize("report", [DeletionReported("b", "u1"), DeletionReported("a", "u0")])
def test_a_report_about_what_is_not_known_asks_nothing(report: DeletionReported) -> None:
    source = Source(ready())
    source.take(report)
    assert source.asked() == []


def test_a_report_about_what_is_known_to_be_gone_asks_nothing() -> None:
    source = Source(ready())
    source.take(DeletionReported("a", "u1"))
    source.answer(NotFound())
    source.take(DeletionReported("a", "u1"))
    assert source.asked() == []


def test_what_is_not_engaged_is_asked_about_too_so_that_the_explanation_is_true() -> None:
    source = Source(not_ready("a"))
    source.take(DeletionReported("a", "u1"))
    assert source.answer(Found(outside(version="3"))) == []
    assert source.state() is ObjectState.OUTSIDE


# --- the stream ---


def test_changes_are_committed_together() -> None:
    source = Source(ready("a"))
    portions = list(
        source.intake.take([ObjectChanged(ready("b")), ObjectChanged(not_ready("a")), EventIgnored("?")], at(0))
    )
    assert [len(portion) for portion in portions] == [2]


def test_a_list_and_what_follows_it_may_come_in_the_same_bytes() -> None:
    source = Source()
    told = source.take(ListStarted(), Listed(ready("a")), ListEnded(), ObjectChanged(not_ready("a")))
    assert [each.type.name for each in told] == ["ENGAGED", "DISENGAGED"]


@pytest.mark.parametrize("count", [PORTION - 1, PORTION, 3 * PORTION + 1])
def test_much_is_applied_in_portions_so_that_others_get_their_turn(count: int) -> None:
    def findings() -> Iterable[SourceEvent]:
        yield ListStarted()
        yield from (Listed(ready(f"a{index}")) for index in range(count))
        yield ListEnded()

    for source in (Source(), Source(ready("b"))):
        portions = list(source.intake.take(findings(), at(0)))
        assert sum(map(len, portions)) == count
        assert max(map(len, portions)) <= PORTION
