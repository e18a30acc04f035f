"""The fast path of the log returns exactly what its normative read returns."""

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.model.cluster import DisengageReason, Draining, with_draining
from milo_discoveryd.model.selector import parse
from milo_discoveryd.registry.filter import EVERYTHING, ClusterView, Filter
from milo_discoveryd.registry.log import Retention
from milo_discoveryd.registry.log_fast_path import FastPath
from milo_discoveryd.rights.scope import ClusterScope, scoped
from tests.unit.registry.fleets import NamedLog, cluster

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["update", "update", "update", "replace", "disengage", "drain"]),
        st.sampled_from("abcdef"),
        st.sampled_from(["prod", "dev"]),
    ),
    max_size=12,
)
VIEWS: list[ClusterView] = [
    EVERYTHING,
    Filter(parse("env")),
    Filter(parse("env=prod")),
    Filter(names=frozenset("ab")),
    Filter(confirms_releases=True),
    Filter(parse("env=prod"), confirms_releases=True),
    scoped(EVERYTHING, ClusterScope(parse("env=dev"))),
]


def changed(log: NamedLog, changes: list[tuple[str, str, str]]) -> None:
    """Apply the changes; a change of a name that is not engaged engages it."""
    versions = itertools.count(1)
    for change, name, env in changes:
        entry = log.entry(name)

        def make(revision: int, name: str = name, env: str = env) -> object:
            return cluster(name, revision, labels={"env": env}, version=str(next(versions)))

        if entry.cluster is None:
            log.engage(entry, make)  # type: ignore[arg-type]
        elif change == "update":
            made = make(entry.cluster.incarnation)
            drains = entry.cluster.draining
            log.update(entry, made if drains is None else with_draining(made, drains), 0.0)  # type: ignore[arg-type]
        elif change == "drain":
            draining = Draining(DisengageReason.NOT_READY, "", 0.0)
            log.update(entry, with_draining(entry.cluster, draining), 0.0)
        elif change == "replace":
            log.replace(entry, "", make, 0.0)  # type: ignore[arg-type]
        else:
            log.disengage(entry, DisengageReason.DELETED, "", 0.0)


@given(
    changes=CHANGES,
    view=st.sampled_from(VIEWS),
    since=st.integers(0, 12),
    batch_bytes=st.sampled_from([1, 900, 2000, 1 << 20]),
    stale_slots=st.sampled_from([1, 1000]),
    stretch=st.sampled_from([1, 2, 1000]),
)
def test_log_fast_path_equals_normative_read(
    changes: list[tuple[str, str, str]], view: ClusterView, since: int, batch_bytes: int, stale_slots: int, stretch: int
) -> None:
    log = NamedLog(msgspec.json.encode, Retention(), batch_bytes, stale_slots)
    changed(log, changes)
    revision = min(since, log.head)
    fast, normative = FastPath(log, stretch).read(revision, view), log.read(revision, view)
    if fast is None:
        return
    if fast.revision == normative.revision:
        assert fast == normative
        return
    # It stopped before an entry that changed more than once, so compare with a log that ends there.
    shorter = NamedLog(msgspec.json.encode, Retention())
    changed(shorter, changes[: fast.revision])
    assert fast == shorter.read(revision, view)


def test_log_fast_path_applies_where_each_entry_changed_once() -> None:
    log = NamedLog(msgspec.json.encode, Retention())
    changed(log, [("update", name, "prod") for name in "abcdef"])
    engaged = log.head
    changed(log, [("update", name, "prod") for name in "abcdef"])
    for view in VIEWS:
        assert FastPath(log, 2).read(engaged, view) == log.read(engaged, view)
