"""What a session makes of batches: each cluster's ENGAGED and DISENGAGED once, and a resume point that holds."""

from __future__ import annotations

from dataclasses import fields

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from milo_discovery import Cluster, DisengageReason, Event, Mark, StreamBroken
from milo_discovery._gen import discovery_pb2 as pb
from milo_discovery._session import _VISIBLE, GONE_MEANWHILE, Session

from .messages import cluster, disengaged, engaged, following, renewed, snapshot, updated, waiting
from .sayings import said


def told(items: tuple[Event | Mark, ...]) -> list[str]:
    return [said(item) for item in items]


def feed(session: Session, *batches: pb.WatchClustersResponse) -> list[str]:
    return [each for batch in batches for each in told(session.receive(batch))]


def synced_with(*events: pb.ClusterEvent) -> Session:
    session = Session()
    session.open()
    session.receive(snapshot("1", *events))
    return session


class TestSnapshots:
    def test_a_first_snapshot_is_told_as_engagements_and_a_mark(self):
        session = Session()
        assert session.open() == ""
        assert feed(session, snapshot("1", engaged("a"), engaged("b"))) == ["ENGAGED a", "ENGAGED b", "synced 2"]
        assert session.revision == "1"
        assert session.synced

    def test_an_empty_fleet_is_synced_too(self):
        session = Session()
        session.open()
        assert feed(session, snapshot("1")) == ["synced 0"]

    def test_nothing_of_a_snapshot_is_told_before_it_is_complete(self):
        session = Session()
        session.open()
        assert feed(session, snapshot("1", engaged("a"), synced=False)) == []
        assert not session.synced
        assert feed(session, following("1", "2", engaged("b"))) == ["ENGAGED a", "ENGAGED b", "synced 2"]

    def test_a_snapshot_that_is_cut_leaves_no_trace(self):
        session = synced_with(engaged("a"))
        session.open()
        session.receive(snapshot("2", engaged("b"), synced=False))
        assert session.open() == "1"
        assert session.view.keys() == {"a"}

    def test_what_changes_while_a_snapshot_comes_in_is_part_of_it(self):
        session = Session()
        session.open()
        assert feed(
            session,
            snapshot("1", engaged("a"), engaged("b"), engaged("c"), synced=False),
            following("1", "2", disengaged("a"), updated(cluster("b", suspended=True))),
        ) == ["ENGAGED b", "ENGAGED c", "synced 2"]
        assert session.view["b"].cluster.suspended

    def test_a_snapshot_may_start_over(self):
        session = Session()
        session.open()
        session.receive(snapshot("1", engaged("a"), synced=False))
        assert feed(session, snapshot("2", engaged("b"))) == ["ENGAGED b", "synced 1"]

    def test_a_daemon_without_a_complete_view_sends_heartbeats_first(self):
        session = Session()
        session.open()
        assert feed(session, waiting("", "0"), waiting("0", "0"), snapshot("1", engaged("a"))) == [
            "ENGAGED a",
            "synced 1",
        ]

    def test_a_daemon_that_restarts_without_a_complete_view_takes_nothing_away(self):
        session = synced_with(engaged("a"))
        assert session.open() == "1"
        assert feed(session, waiting("", "0")) == []
        assert session.view.keys() == {"a"}
        assert session.synced
        assert session.open() == "1"


class TestResets:
    def test_a_reset_tells_only_what_differs(self):
        session = synced_with(engaged("a"), engaged("b"))
        session.open()
        assert feed(session, snapshot("9", engaged("b"), engaged("c"))) == ["DISENGAGED a", "ENGAGED c", "synced 2"]

    def test_a_cluster_missing_from_a_reset_is_gone_for_no_known_reason(self):
        session = synced_with(engaged("a"))
        session.open()
        gone, _ = session.receive(snapshot("9"))
        assert isinstance(gone, Event)
        assert (gone.reason, gone.message) == (DisengageReason.UNSPECIFIED, GONE_MEANWHILE)

    def test_another_uid_under_the_same_name_is_another_cluster(self):
        session = synced_with(engaged(cluster("a", uid="old")))
        session.open()
        out, into, _ = session.receive(snapshot("9", engaged(cluster("a", uid="new"))))
        assert isinstance(out, Event)
        assert isinstance(into, Event)
        assert (out.type.name, out.reason.name, out.cluster.uid) == ("DISENGAGED", "REPLACED", "old")
        assert (into.type.name, into.cluster.uid) == ("ENGAGED", "new")

    def test_another_incarnation_alone_is_no_news(self):
        session = synced_with(engaged(cluster("a", incarnation="first", engaged_at=Timestamp(seconds=1))))
        session.open()
        again = cluster("a", incarnation="second", engaged_at=Timestamp(seconds=2), source_resource_version="77")
        assert feed(session, snapshot("9", engaged(again))) == ["refreshed a", "synced 1"]
        assert session.view["a"].cluster.incarnation == "second", "who asks for kubeconfigs needs the present one"

    @pytest.mark.parametrize(
        "change",
        [
            {"endpoint": "https://elsewhere"},
            {"organization": "other"},
            {"labels": {"env": "dev"}},
            {"annotations": {"note": "x"}},
            {"deletion_requested_at": Timestamp(seconds=5)},
            {"deletion_message": "waiting"},
            {"suspended": True},
            {"connectivity": pb.Connectivity(state=pb.Connectivity.STATE_UNREACHABLE)},
            {"connectivity": pb.Connectivity(message="refused")},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_visible_change_is_an_update(self, change):
        session = synced_with(engaged(cluster("a")))
        session.open()
        assert feed(session, snapshot("9", engaged(cluster("a", **change)))) == ["UPDATED a", "synced 1"]

    def test_a_prober_that_started_over_is_no_news(self):
        session = synced_with(engaged(cluster("a", connectivity=pb.Connectivity(since=Timestamp(seconds=1)))))
        session.open()
        again = cluster("a", connectivity=pb.Connectivity(since=Timestamp(seconds=2)))
        assert feed(session, snapshot("9", engaged(again))) == ["refreshed a", "synced 1"]

    def test_every_field_of_a_cluster_is_either_visible_or_the_daemons_own(self):
        visible = {name.partition(".")[0] for name in _VISIBLE}
        assert {field.name for field in fields(Cluster)} - visible == {
            "incarnation",
            "engaged_at",
            "source_resource_version",
        }

    def test_a_kubeconfig_that_is_new_in_a_reset_is_handed_on(self):
        session = synced_with(engaged("a", kubeconfig=b"old"), engaged("b", kubeconfig=b"kept"))
        session.open()
        items = session.receive(snapshot("9", engaged("a", kubeconfig=b"new"), engaged("b", kubeconfig=b"kept")))
        assert told(items) == ["KUBECONFIG a", "synced 2"]
        assert isinstance(items[0], Event)
        assert items[0].kubeconfig is not None
        assert items[0].kubeconfig.kubeconfig == b"new"

    def test_a_reset_may_come_in_the_middle_of_a_stream(self):
        session = synced_with(engaged("a"))
        assert feed(session, snapshot("9", engaged("b"))) == ["DISENGAGED a", "ENGAGED b", "synced 1"]


class TestChanges:
    def test_changes_are_told_as_they_are(self):
        session = synced_with(engaged("a"))
        assert feed(session, following("1", "2", engaged("b"), updated("a"), renewed("a", b"k"), disengaged("b"))) == [
            "ENGAGED b",
            "UPDATED a",
            "KUBECONFIG a",
            "DISENGAGED b",
        ]
        assert session.view.keys() == {"a"}
        assert session.revision == "2"

    def test_a_replacement_is_two_events_of_one_batch(self):
        session = synced_with(engaged(cluster("a", uid="old")))
        batch = following(
            "1",
            "2",
            disengaged(cluster("a", uid="old"), pb.DISENGAGE_REASON_REPLACED),
            engaged(cluster("a", uid="new")),
        )
        assert feed(session, batch) == ["DISENGAGED a", "ENGAGED a"]
        assert session.view["a"].cluster.uid == "new"

    def test_an_update_keeps_the_kubeconfig(self):
        session = synced_with(engaged("a", kubeconfig=b"k"))
        session.receive(following("1", "2", updated(cluster("a", suspended=True))))
        kept = session.view["a"].kubeconfig
        assert kept is not None
        assert kept.kubeconfig == b"k"

    def test_a_resumed_stream_goes_on_where_the_other_stopped(self):
        session = synced_with(engaged("a"))
        assert session.open() == "1"
        assert feed(session, following("1", "2", disengaged("a"))) == ["DISENGAGED a"]

    def test_reason_and_message_arrive(self):
        session = synced_with(engaged("a"))
        (event,) = session.receive(
            following("1", "2", disengaged("a", pb.DISENGAGE_REASON_NOT_READY, "no quorum")),
        )
        assert isinstance(event, Event)
        assert (event.reason, event.message) == (DisengageReason.NOT_READY, "no quorum")

    def test_a_reason_of_a_newer_daemon_is_unspecified(self):
        session = synced_with(engaged("a"))
        (event,) = session.receive(following("1", "2", disengaged("a", 99)))
        assert isinstance(event, Event)
        assert event.reason is DisengageReason.UNSPECIFIED

    @pytest.mark.parametrize("during_snapshot", [False, True])
    def test_an_event_of_a_type_of_a_newer_daemon_is_passed_over(self, during_snapshot):
        session = synced_with(engaged("a"))
        unheard_of = pb.ClusterEvent(type=99, cluster=cluster("a"))
        batch = snapshot("2", engaged("a"), unheard_of) if during_snapshot else following("1", "2", unheard_of)
        assert [each for each in feed(session, batch) if not each.startswith("synced")] == []
        assert session.revision == "2"

    def test_heartbeats_move_the_resume_point_and_tell_the_source(self):
        session = synced_with(engaged("a"))
        stale = pb.SourceStatus(state=pb.SourceStatus.STATE_STALE, reason="ConnectFailed")
        assert feed(session, following("1", "2", source=stale), following("2", "3")) == []
        assert session.source is not None
        assert (session.source.state.name, session.source.reason) == ("STALE", "ConnectFailed")
        assert session.revision == "3"


class TestBrokenPromises:
    def test_a_missing_batch_is_noticed_and_resumed_from_the_last_good_one(self):
        session = synced_with(engaged("a"))
        with pytest.raises(StreamBroken, match="a batch is missing: one that follows '2' came after '1'"):
            session.receive(following("2", "3", disengaged("a")))
        assert session.view.keys() == {"a"}
        assert session.open() == "1"

    def test_a_missing_batch_of_a_snapshot_drops_the_snapshot(self):
        session = Session()
        session.open()
        session.receive(snapshot("1", engaged("a"), synced=False))
        with pytest.raises(StreamBroken, match="missing"):
            session.receive(following("2", "3", engaged("c")))
        assert session.open() == ""
        assert not session.view

    def test_a_resumed_stream_that_jumped_ahead_is_noticed(self):
        session = synced_with(engaged("a"))
        session.open()
        with pytest.raises(StreamBroken, match="missing"):
            session.receive(following("5", "6"))
        assert session.open() == "1"

    @pytest.mark.parametrize(
        ("event", "complaint"),
        [
            (engaged("a"), "ENGAGED for cluster 'a', which is engaged"),
            (updated("b"), "UPDATED for cluster 'b', which is not engaged"),
            (disengaged("b"), "DISENGAGED for cluster 'b', which is not engaged"),
            (renewed("b", b"k"), "KUBECONFIG for cluster 'b', which is not engaged"),
        ],
        ids=["engaged twice", "updated unknown", "disengaged unknown", "kubeconfig for unknown"],
    )
    def test_an_event_that_contradicts_the_view_applies_nothing_and_starts_over(self, event, complaint):
        session = synced_with(engaged("a"))
        with pytest.raises(StreamBroken, match=complaint):
            session.receive(following("1", "2", engaged("c"), event))
        assert session.view.keys() == {"a"}
        assert session.open() == ""

    def test_a_new_stream_that_begins_without_a_snapshot_is_refused(self):
        session = Session()
        session.open()
        with pytest.raises(StreamBroken, match="without a snapshot"):
            session.receive(following("", "1", engaged("a")))

    @pytest.mark.parametrize(
        "batch", [following("0", "1", engaged("a")), following("0", "1", engaged("a"), synced=False)]
    )
    def test_events_before_the_snapshot_are_refused(self, batch):
        session = Session()
        session.open()
        session.receive(waiting("", "0"))
        with pytest.raises(StreamBroken, match="before the snapshot"):
            session.receive(batch)

    def test_a_complete_view_cannot_be_taken_back(self):
        session = synced_with(engaged("a"))
        with pytest.raises(StreamBroken, match="without a reset"):
            session.receive(following("1", "2", synced=False))

    def test_a_batch_on_a_stream_that_is_not_open_is_refused(self):
        session = synced_with(engaged("a"))
        with pytest.raises(StreamBroken):
            session.receive(following("7", "8"))
        with pytest.raises(StreamBroken, match="isn't open"):
            session.receive(following("1", "2"))
