"""Runs the session test cases that all clients share, and tests specific to Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from milo_discovery import Cluster, Event, Kubeconfig, Refreshed, StreamBroken, StreamNotice, Synced
from milo_discovery._session import _CLUSTER_FIELDS, Session
from milo_discovery.v1 import discovery_pb2 as pb

CASES = json.loads((Path(__file__).parents[2] / "testdata" / "session_cases.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_session_passes_shared_case(case: dict[str, Any]) -> None:
    session = Session()
    for step in case["steps"]:
        match step:
            case {"open": revision}:
                assert session.open() == revision
            case {"batch": batch, "breaks": complaint}:
                with pytest.raises(StreamBroken) as broken:
                    session.receive(ParseDict(batch, pb.WatchClustersResponse()))
                assert complaint in str(broken.value)
            case {"batch": batch}:
                items = session.receive(ParseDict(batch, pb.WatchClustersResponse()))
                assert "news" not in step or [describe(item) for item in items] == step["news"]
            case {"lose": True, "news": news}:
                assert [describe(item) for item in session.lose_ownership()] == news
            case {"state": wanted}:
                assert state_of(session) == {"source": "", "pending": [], **wanted}


def state_of(session: Session) -> dict[str, Any]:
    source = session.source
    return {
        "view": [" ".join(cluster_words(known.cluster, known.kubeconfig)) for _, known in sorted(session.view.items())],
        "revision": session.revision,
        "synced": session.synced,
        "source": "" if source is None else f"{source.state.name} {source.reason}",
        "pending": list(session.pending_sources),
    }


def describe(item: Event | StreamNotice) -> str:
    match item:
        case Event():
            reason = "" if item.reason.name == "UNSPECIFIED" else item.reason.name
            words = cluster_words(item.cluster, item.kubeconfig, reason=reason, message=item.message)
            return " ".join([item.type.name, *words])
        case Refreshed():
            return " ".join(["REFRESHED", *cluster_words(item.cluster, None)])
        case Synced():
            return f"SYNCED {item.clusters}"
        case _:
            raise AssertionError(f"unexpected {type(item).__name__} from a session")


def cluster_words(
    cluster: Cluster, kubeconfig: Kubeconfig | None, *, reason: str = "", message: str = ""
) -> Iterator[str]:
    yield cluster.name
    if cluster.uid:
        yield f"uid={cluster.uid}"
    if cluster.incarnation:
        yield f"incarnation={cluster.incarnation}"
    if cluster.suspended:
        yield "suspended"
    if cluster.draining is not None:
        yield f"draining={cluster.draining.reason.name}"
    if reason:
        yield f"reason={reason}"
    if message:
        yield f'message="{message}"'
    if kubeconfig is not None:
        yield f"kubeconfig={kubeconfig.kubeconfig.decode()}"


def test_each_cluster_field_is_either_content_or_assigned_by_the_daemon() -> None:
    content = {name.partition(".")[0] for name in _CLUSTER_FIELDS}
    assert {field.name for field in fields(Cluster)} - content == {
        "incarnation",
        "engaged_at",
        "source_resource_version",
    }


def test_snapshot_shares_what_equals_the_view() -> None:
    """Otherwise a subscriber would have its fleet twice in memory whenever the daemon restarts."""
    session = Session()
    engaged = pb.ClusterEvent(type=pb.ClusterEvent.TYPE_ENGAGED, cluster=pb.Cluster(name="alpha", labels={"a": "b"}))
    for revision in ("1", "2"):
        session.open()
        before = [known.cluster for known in session.view.values()]
        session.receive(pb.WatchClustersResponse(events=[engaged], reset=True, synced=True, revision=revision))
    assert [known.cluster for known in session.view.values()] == before
    assert session.view["alpha"].cluster is before[0]
