"""What a cluster that an object describes weighs in the budget of its source: at least what it takes in memory."""

import gc
import json
import tracemalloc
from typing import Any

import pytest

from milo_discoveryd.log.change_log import ChangeLog, Retention
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.filter import EVERYTHING
from milo_discoveryd.schema.fields import parse_group
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.sources.declarative import DeclarativeKind
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import SourceOptions
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted
from tests.support.sources import new_source
from tests.unit.fleet.test_fleet_malformed import Ledger

CLUSTERS = 500
PROBES = 900
"""Bytes that the probes of one cluster take, on a host of its own."""
DECLARED = {
    "resource": {"group": "example.com", "version": "v1", "plural": "clusters", "namespaced": True},
    "name": "{metadata.namespace}.{metadata.name}",
}


def _object(number: int, **content: Any) -> bytes:
    metadata = {"namespace": f"n{number}", "name": f"c{number}", "uid": f"{number:036}", "resourceVersion": "1"}
    return json.dumps({"metadata": metadata, **content}).encode()


@pytest.mark.parametrize(
    "declared",
    [
        pytest.param({"endpoint": {"field": "spec.url"}}, id="field"),
        pytest.param({"endpoint": {"field": "spec.url"}, "secret": {"name": "{metadata.name}"}}, id="secret"),
    ],
)
def test_declared_cluster_weighs_at_least_what_it_takes_in_memory(declared: dict[str, Any]) -> None:
    kind = parse_group(DeclarativeKind, DECLARED | declared)
    keyed = KeyedSource(kind.follow(SourceOptions(project_server="https://milo.test")), "source")
    log = ChangeLog(encoder("0123456789abcdef"), Retention())
    source = new_source(Ledger(), log, name="source", keys=keyed.keys, reduce=keyed.reduce)
    gc.collect()
    tracemalloc.start()
    try:
        began, _ = tracemalloc.get_traced_memory()
        for collection, followed in zip(source.collections, keyed.collections, strict=True):
            listed = [
                Listed(followed.decoder.object(_object(number, spec={"url": f"https://c{number}.example.com"})))
                for number in range(CLUSTERS)
            ]
            for _ in source.apply(collection, [ListStarted(), *listed, ListEnded("9")], 0.0):
                pass
            del listed
        assert source.engagements.engaged == CLUSTERS
        cursor = Cursor(log, EVERYTHING, None)
        while cursor.next_batch() is not None:  # encodes the frames
            pass
        gc.collect()
        ended, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    took = (ended - began) / CLUSTERS + PROBES
    weight = sum(record.weight for of in source.collections for _, record in of.store.items()) / CLUSTERS
    assert took < weight < 1.5 * took
