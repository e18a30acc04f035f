"""Tests of the validators: a valid history passes, and each kind of violation is found by its validator."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from milo_discoveryd.server.calls.revision import Position
from tests.end_to_end.process.history import Batch, History, RecordedEvent, Stream
from tests.end_to_end.process.upstream import State, Upstream
from tests.end_to_end.process.validators import breaches

PROD = (("env", "prod"),)
DEV = (("env", "dev"),)


def at(revision: int, part: int | None = None, epoch: str = "a" * 16) -> str:
    return f"{Position(epoch, revision, part)}.{'m' * 22}"


def event(kind: str, name: str, incarnation: int, version: int, *, uid: str = "", reason: str = "") -> RecordedEvent:
    labels = DEV if name == "alpha" and version == 11 else PROD
    uid = uid or f"uid-{name}"
    return RecordedEvent(kind, name, uid, f"{incarnation}", version, labels, reason, f"{name} {version}".encode())


NAMES = ("delta", "alpha", "beta", "gamma")
DELTA, ALPHA, BETA, GAMMA = (event("ENGAGED", name, number, number) for number, name in enumerate(NAMES))
RELABELLED = event("UPDATED", "alpha", 1, 11)
NOT_READY = event("DISENGAGED", "beta", 2, 2, reason="NOT_READY")
DELETED = event("DISENGAGED", "gamma", 3, 3, reason="DELETED")
BETA_AGAIN = event("ENGAGED", "beta", 7, 12)
REPLACED = event("DISENGAGED", "alpha", 1, 11, reason="REPLACED")
ALPHA_RECREATED = event("ENGAGED", "alpha", 8, 13, uid="uid-other")


def upstream() -> Upstream:
    made = Upstream()
    for name in NAMES:
        made.note(name, State(f"uid-{name}", True, PROD))
    made.note("alpha", State("uid-alpha", True, DEV))
    made.note("beta", State("uid-beta", False, PROD))
    made.note("gamma", None)
    made.note("beta", State("uid-beta", True, PROD))
    made.note("alpha", None)
    made.note("alpha", State("uid-other", True, PROD))
    return made


def history(who: str = "it") -> History:
    """Return a history: a snapshot in two parts, changes, a cut, a resume, and more changes."""
    return History(
        who,
        "",
        [
            Stream(
                "",
                [
                    Batch((DELTA, ALPHA, BETA), at(3, 1), "", synced=False, reset=True),
                    Batch((GAMMA,), at(3), at(3, 1)),
                    Batch((RELABELLED,), at(4), at(3)),
                    Batch((), at(4), at(4)),
                    Batch((NOT_READY, DELETED), at(6), at(4)),
                ],
            ),
            Stream(
                at(6),
                [
                    Batch((BETA_AGAIN,), at(7), at(6)),
                    Batch((REPLACED, ALPHA_RECREATED), at(8), at(7)),
                    Batch((), at(8), at(8)),
                ],
            ),
        ],
    )


Harm = Callable[[History], None]


def batch(stream: int, index: int, **changes: object) -> Harm:
    """Replace fields of a batch."""

    def harm(history: History) -> None:
        batches = history.streams[stream].batches
        batches[index] = replace(batches[index], **changes)  # type: ignore[arg-type]

    return harm


def events(stream: int, index: int, *those: RecordedEvent) -> Harm:
    """Replace the events of a batch."""
    return batch(stream, index, events=those)


def drop(stream: int, index: int) -> Harm:
    return lambda history: history.streams[stream].batches.__delitem__(index)


def insert(stream: int, index: int, one: Batch) -> Harm:
    return lambda history: history.streams[stream].batches.insert(index, one)


def swap(stream: int, index: int) -> Harm:
    def harm(history: History) -> None:
        batches = history.streams[stream].batches
        batches[index], batches[index + 1] = batches[index + 1], batches[index]

    return harm


def resumed_from(revision: str) -> Harm:
    """Make the second stream resume from this revision."""

    def harm(history: History) -> None:
        stream = history.streams[1]
        stream.resumed_from = revision
        stream.batches[0] = replace(stream.batches[0], previous=revision)

    return harm


def snapshot(*those: RecordedEvent, revision: str) -> Harm:
    """Make the second stream begin with a snapshot of another daemon, or of this one."""

    def harm(history: History) -> None:
        history.streams[1].batches = [Batch(those, revision, reset=True)]

    return harm


def test_validators_accept_a_valid_history() -> None:
    assert breaches([history("one"), history("other")], upstream()) == []


def test_validators_accept_a_snapshot_with_the_revisions_of_another_daemon() -> None:
    restarted = history()
    now = (replace(cluster, incarnation=f"another {cluster.name}") for cluster in (DELTA, BETA_AGAIN, ALPHA_RECREATED))
    snapshot(*now, revision=at(2, epoch="b" * 16))(restarted)
    assert breaches([restarted], upstream()) == []


@pytest.mark.parametrize(
    ("validator", "harm"),
    [
        pytest.param("ordered", swap(0, 2), id="two batches change places"),
        pytest.param("ordered", drop(0, 2), id="a batch is lost"),
        pytest.param("ordered", batch(0, 4, revision=at(2)), id="a revision goes back"),
        pytest.param("ordered", batch(1, 0, previous=at(5)), id="a resume continues from another revision"),
        pytest.param("unique", insert(0, 3, Batch((RELABELLED,), at(5), at(4))), id="an update comes twice"),
        pytest.param("unique", events(0, 2, replace(RELABELLED, version=0)), id="an update is of the past"),
        pytest.param(
            "forward", events(1, 0, replace(BETA_AGAIN, version=1)), id="a cluster returns in an older version"
        ),
        pytest.param("reliable", drop(0, 4), id="the last batch before a cut is lost"),
        pytest.param("reliable", events(0, 4, DELETED), id="a disengagement is lost"),
        pytest.param("reliable", events(1, 0), id="an engagement is lost"),
        pytest.param("reliable", events(1, 1, ALPHA_RECREATED), id="a replacement shows its second half only"),
        pytest.param("reliable", events(1, 1, ALPHA_RECREATED, REPLACED), id="a replacement is in the wrong order"),
        pytest.param("reliable", events(1, 2, RELABELLED), id="an update comes after the end"),
        pytest.param("reliable", events(1, 1, REPLACED, replace(ALPHA_RECREATED, labels=DEV)), id="labels are wrong"),
        pytest.param(
            "reliable", events(1, 1, REPLACED, replace(ALPHA_RECREATED, uid="uid-alpha")), id="a uid is ignored"
        ),
        pytest.param("atomic", insert(1, 1, Batch((), at(8), at(7))), id="a heartbeat overtakes events"),
        pytest.param(
            "atomic",
            lambda history: (
                events(1, 1, REPLACED)(history),
                insert(1, 2, Batch((ALPHA_RECREATED,), at(8), at(8)))(history),
            ),
            id="one revision is split over two batches",
        ),
        pytest.param("resumable", resumed_from(at(6, epoch="b" * 16)), id="another daemon's revision is resumed from"),
        pytest.param("resumable", resumed_from(at(3, 1)), id="half a snapshot is resumed from"),
        pytest.param(
            "resumable", snapshot(DELTA, BETA_AGAIN, ALPHA_RECREATED, revision=at(8)), id="a resume is refused"
        ),
        pytest.param("agreeing", events(0, 4, NOT_READY), id="two readers at one revision know different clusters"),
        pytest.param("agreeing", events(0, 2), id="a heartbeat hides unsent changes"),
        pytest.param("snapshots", batch(0, 0, reset=False), id="a stream from the start begins without a snapshot"),
        pytest.param("snapshots", batch(0, 1, revision=at(4)), id="a snapshot is of two revisions"),
        pytest.param("snapshots", events(0, 1, GAMMA, ALPHA), id="a cluster is twice in a snapshot"),
        pytest.param("snapshots", events(0, 1, GAMMA, RELABELLED), id="a change is part of a snapshot"),
        pytest.param(
            "no_phantoms", events(0, 4, NOT_READY, replace(DELETED, reason="NOT_READY")), id="a reason is made up"
        ),
        pytest.param(
            "no_phantoms",
            insert(1, 1, Batch((replace(DELTA, kind="DISENGAGED", reason="DELETED"),), at(7), at(7))),
            id="a ready cluster is disengaged",
        ),
        pytest.param(
            "no_phantoms",
            snapshot(BETA_AGAIN, ALPHA_RECREATED, revision=at(2, epoch="b" * 16)),
            id="a ready cluster is left out of a snapshot",
        ),
    ],
)
def test_validator_detects_a_violation_of_its_property(validator: str, harm: Harm) -> None:
    harmed = history("harmed")
    harm(harmed)
    assert validator in {breach.partition(":")[0] for breach in breaches([history("well"), harmed], upstream())}


def test_validators_accept_an_older_snapshot_from_a_restarted_process() -> None:
    """A daemon with an older state file, without its API server, protects only subscribers that resume."""
    restarted = history("restarted")
    one = restarted.streams[1].batches[0]
    restored = Batch((ALPHA_RECREATED,), at(7, epoch="b" * 16), reset=True)
    following = replace(one, events=(DELTA, BETA_AGAIN), revision=at(8, epoch="b" * 16), previous=restored.revision)
    restarted.streams[1] = Stream("", [restored, following], is_of_new_process=True)
    assert breaches([restarted], upstream()) == []
    restarted.streams[1].is_of_new_process = False
    assert {breach.partition(":")[0] for breach in breaches([restarted], upstream())} == {"no_phantoms"}
