"""Lists are idempotent: repeating one, or splitting it differently, changes nothing."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.engagement.engagement import ClusterRecord
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.model.observation import Observation
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, SourceEvent
from tests.unit.fleet.fleets import ListedClusters, malformed, not_ready, ready

NAMES = [f"cluster-{index}" for index in range(8)]


def observations(name: str) -> st.SearchStrategy[Observation]:
    uids, versions = st.sampled_from(["u1", "u2"]), st.integers(1, 9).map(str)
    return st.one_of(
        st.builds(ready, st.just(name), versions, uids, suspended=st.booleans()),
        st.builds(not_ready, st.just(name), versions, uids),
        st.builds(malformed, st.just(name), versions, uids),
    )


@st.composite
def lists(draw: st.DrawFn) -> list[Observation]:
    return [draw(observations(name)) for name in draw(st.lists(st.sampled_from(NAMES), unique=True))]


class Source(ListedClusters):
    def apply(self, findings: Sequence[SourceEvent[ObservedObject]]) -> int:
        """Apply the list; return the number of changes."""
        return len(self.take(*findings))

    def records(self) -> dict[str, ClusterRecord | None]:
        return {name: self.engagements[name] for name in NAMES}


def findings(of: list[Observation]) -> list[SourceEvent[ObservedObject]]:
    return [ListStarted(), *map(Listed, of), ListEnded()]


@given(before=lists(), listed=lists())
def test_identical_relist_has_no_effect(before: list[Observation], listed: list[Observation]) -> None:
    source = Source()
    source.apply(findings(before))
    source.apply(findings(listed))
    head = source.engagements.log.head
    asked = source.pending_deletions.take_due(0.0)
    assert source.apply(findings(listed)) == 0
    assert source.engagements.log.head == head
    assert source.pending_deletions.take_due(0.0) == []
    missing = {observation.name for observation in before} - {observation.name for observation in listed}
    if source.collection.trust.is_ignoring:
        missing = set()  # the list may be from another server
    held = {name for name in NAMES if source.pending_deletions.is_held_until_accepted(name)}
    assert {question.name for question in asked} == missing - held
    assert not held or held >= {
        name for name, record in source.store.items() if name in missing and record.is_established
    }


@given(before=lists(), listed=lists(), data=st.data())
def test_list_chunking_has_no_effect(before: list[Observation], listed: list[Observation], data: st.DataObject) -> None:
    whole, cut = Source(), Source()
    for source in (whole, cut):
        source.apply(findings(before))
    whole.apply(findings(listed))
    rest = findings(listed)
    while rest:
        batch = data.draw(st.integers(1, len(rest)))
        cut.apply(rest[:batch])
        rest = rest[batch:]
    assert cut.records() == whole.records()
    assert cut.engagements.log.head == whole.engagements.log.head


@given(before=lists(), listed=lists())
def test_abandoned_list_has_no_effect(before: list[Observation], listed: list[Observation]) -> None:
    source, untouched = Source(), Source()
    for each in (source, untouched):
        each.apply(findings(before))
    source.apply(findings(listed)[:-1])
    assert source.records() == untouched.records()
    source.apply(findings(before))
    assert source.engagements.log.head == untouched.engagements.log.head
    assert source.pending_deletions.take_due(0.0) == []
