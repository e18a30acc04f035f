"""Messages: what is encoded is read back, and a foreign message is refused."""

from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_objects.kinds import Kind
from milo_objects.messages import (
    ClusterMessage,
    Heartbeat,
    ObjectMessage,
    ScopeIsOver,
    ScopeMessage,
    StoredMessage,
    decode,
    decoded,
)
from milo_objects.projection import ProjectedObject, Projection
from milo_objects.scope import FleetCluster, OverBudget, Pending, Stale, Synced
from milo_objects.stream_commands import problem_of, ttl_s
from milo_objects.subjects import ClusterSubject, ObjectSubject, ScopeSubject, Subject

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLUSTER = FleetCluster(name="milo#web", incarnation="i", uid="u", organization="acme", labels={"env": "prod"})
SCOPE = ScopeSubject("milo#web", "", "namespaces")
OBJECT = ObjectSubject(SCOPE, "", "a.b")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=5,
)


def stored(subject: Subject, message: ClusterMessage | ScopeMessage | ObjectMessage) -> StoredMessage:
    return StoredMessage(str(subject), 7, *message.encode())


@given(st.dictionaries(st.sampled_from(["labels", "annotations"]), VALUES), st.dictionaries(st.text("xyz"), VALUES))
def test_object_is_read_back(metadata: dict[str, object], status: dict[str, object]) -> None:
    raw = {
        "apiVersion": "v1",
        "metadata": {
            **metadata,
            "name": "a.b",
            "uid": "u1",
            "resourceVersion": "5",
            "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-02T00:00:00Z",
        },
        "status": status,
    }
    paths = ["metadata.labels", "metadata.annotations", "status"]
    message = ObjectMessage(Projection(paths).of(msgspec.json.encode(raw)), epoch=4)
    assert decode(stored(OBJECT, message)) == (OBJECT, message)
    body = msgspec.json.decode(message.encode().body)
    assert body["metadata"]["name"] == "a.b"
    assert body["metadata"].get("labels") == metadata.get("labels")


def test_gone_object_is_read_back_without_its_fields() -> None:
    found = ProjectedObject("", "a.b", "u1", b'{"status":{"phase":"Active"}}', "5")
    gone = ObjectMessage(found, 4, "OBJECT_DELETED")
    assert gone.object.content == b"{}"
    assert decode(stored(OBJECT, gone)) == (OBJECT, gone)


@pytest.mark.parametrize("state", [Pending(NOW), Synced(NOW), Stale(NOW, "no answer"), ScopeIsOver("DELETED")])
def test_scope_is_read_back(state: Pending | Synced | Stale | ScopeIsOver) -> None:
    message = ScopeMessage(CLUSTER, state, 12)
    assert decode(stored(SCOPE, message)) == (SCOPE, message)


def sent_bytes(message: ClusterMessage | ScopeMessage | ObjectMessage, expected: int) -> int:
    """Return what a server counts of a message."""
    headers, body = message.encode()
    headers = {**headers, "Nats-Expected-Last-Subject-Sequence": str(expected)}
    if ttl_s(message) is not None:
        headers["Nats-TTL"] = "3600s"
    return len(body) + sum(len(f"{name}: {value}\r\n") for name, value in headers.items())


def test_full_stream_takes_each_message_that_says_that_something_is_over() -> None:
    """A server without room takes only a message that is shorter than the one it replaces."""
    bare = ProjectedObject("", "a", "u", version="9", created_at=NOW)
    fields = msgspec.structs.replace(bare, content=b'{"status":{"phase":"%s"}}' % (b"x" * 200))
    labels = msgspec.structs.replace(bare, content=b'{"metadata":{"labels":{"%s":"y"}}}' % (b"x" * 200))
    last = msgspec.structs.replace(bare, version="9" * 12, generation=2, deletion_requested_at=NOW)
    chains: list[list[ClusterMessage | ScopeMessage | ObjectMessage]] = [
        [ClusterMessage(CLUSTER), ClusterMessage(CLUSTER, "LABELS_CHANGED")],
        *([ObjectMessage(found, 1), ObjectMessage(last, 1, "OUT_OF_SELECTOR")] for found in (bare, fields, labels)),
        *(
            [
                *(ScopeMessage(CLUSTER, state, 1, publisher) for state in states),
                ScopeMessage(CLUSTER, ScopeIsOver("LABELS_CHANGED"), 1),
            ]
            for publisher in ("", "one")
            for states in (
                (Synced(NOW), Stale(NOW, "x" * 240), OverBudget(datetime.now(UTC), "x" * 240)),
                (Synced(NOW), OverBudget(NOW, "x")),
                (Pending(NOW), OverBudget(NOW, "x")),
            )
        ),
    ]
    for chain in chains:
        for before, after in pairwise(chain):
            assert sent_bytes(before, 1) > sent_bytes(after, 10**12)


@pytest.mark.parametrize("ended", ["", "DELETED"])
def test_cluster_is_read_back(ended: str) -> None:
    message = ClusterMessage(CLUSTER, ended)
    assert decode(stored(ClusterSubject("milo#web"), message)) == (ClusterSubject("milo#web"), message)
    assert message.differs(ClusterMessage(CLUSTER, "MOVED"))
    assert not message.differs(ClusterMessage(CLUSTER, ended))


def test_object_differs_in_what_is_kept_its_scope_or_its_end() -> None:
    found = ProjectedObject("", "a", "u1", b'{"a":1}', "5")
    message = ObjectMessage(found, 4)
    assert not message.differs(ObjectMessage(msgspec.structs.replace(found, version="6"), 4))
    assert message.differs(ObjectMessage(msgspec.structs.replace(found, content=b"{}"), 4))
    assert message.differs(ObjectMessage(found, 5))
    assert ObjectMessage(found, 4, "MISSING").differs(message)
    assert not ObjectMessage(found, 4, "MISSING").differs(ObjectMessage(found, 4, "MISSING"))


def test_what_a_kind_keeps_of_an_object_is_read() -> None:
    kind = Kind("v1/configmaps", ["data.a"], label_selector="team=red")
    content = b'{"data":{"a":"1","b":"2"},"metadata":{"labels":{"team":"red"}}}'
    message = ObjectMessage(ProjectedObject("", "a.b", "u1", content, "5"), 4)
    (kept, selected) = (ObjectMessage.decode_kept(stored(OBJECT, message), kind), message.object)
    assert kept == ObjectMessage(msgspec.structs.replace(selected, content=b'{"data":{"a":"1"}}'), 4)
    blue = ObjectMessage(msgspec.structs.replace(selected, content=content.replace(b"red", b"blue")), 4)
    assert ObjectMessage.decode_kept(stored(OBJECT, blue), kind).gone == "OUT_OF_SELECTOR"
    gone = ObjectMessage(msgspec.structs.replace(selected, content=b"{}"), 4, "MISSING")
    assert ObjectMessage.decode_kept(stored(OBJECT, gone), kind) == gone
    for body in (b"{}", b'{"metadata":{"name":"a.b","uid":1}}'):
        with pytest.raises(ValueError, match="not a message of milo-objects"):
            ObjectMessage.decode_kept(stored(OBJECT, message)._replace(body=body), kind)


def test_scope_differs_in_more_than_its_time_and_incarnation() -> None:
    message = ScopeMessage(CLUSTER, Synced(NOW), 12)
    restarted = msgspec.structs.replace(CLUSTER, incarnation="another")
    later = datetime(2026, 1, 2, tzinfo=UTC)
    assert not ScopeMessage(restarted, Synced(later), 12).differs(message)
    assert ScopeMessage(CLUSTER, Stale(NOW, ""), 12).differs(message)
    assert ScopeMessage(CLUSTER, Synced(NOW), 13).differs(message)
    assert ScopeMessage(CLUSTER, ScopeIsOver("DELETED"), 12).differs(message)


@pytest.mark.parametrize(
    ("subject", "headers", "body"),
    [
        (OBJECT, {}, b"{}"),
        (OBJECT, {"Milo-Epoch": "1"}, b"{}"),
        (OBJECT, {"Milo-Epoch": "1"}, b'{"metadata":{"name":"a","name":1}}'),
        (OBJECT, {"Milo-Epoch": "x"}, b'{"metadata":{"name":"a"}}'),
        (OBJECT, {"Milo-Epoch": "1"}, b'{"metadata":{"name":"a.b"},"status":"\xff"}'),
        (SCOPE, {}, b"not JSON"),
        (SCOPE, {}, ScopeMessage(CLUSTER, Synced(NOW.replace(tzinfo=None)), 1).encode().body),
        (ClusterSubject("web"), {}, b"[]"),
    ],
)
def test_foreign_message_is_refused(subject: Subject, headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(ValueError, match="not a message of milo-objects"):
        decode(StoredMessage(str(subject), 7, headers, body))


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (ClusterSubject("shop"), ClusterMessage(CLUSTER)),
        (ScopeSubject("shop", "", "namespaces"), ScopeMessage(CLUSTER, ScopeIsOver("DELETED"), 12)),
        (OBJECT, ObjectMessage(ProjectedObject("", "another", "u"), 4)),
        (OBJECT, ObjectMessage(ProjectedObject("team", "a.b", "u"), 4)),
    ],
)
def test_message_about_something_else_than_its_subject_is_refused(
    subject: Subject, message: ClusterMessage | ScopeMessage | ObjectMessage
) -> None:
    """NATS' permissions limit who writes which subjects, and so what one message can end."""
    with pytest.raises(ValueError, match="something else"):
        decode(stored(subject, message))


def test_size_of_a_message_includes_the_bytes_of_its_headers() -> None:
    """A server closes the connection of a client that sends a larger message than it accepts."""
    longest = chr(0x1F600) * 128
    encoded = ObjectMessage(ProjectedObject("", "a.b", longest, b"{}", longest), 4).encode()
    wire = len(encoded.body) + sum(len(f"{name}: {value}\r\n".encode()) for name, value in encoded.headers.items())
    assert problem_of(OBJECT, encoded, wire)


def test_heartbeat_is_read_back() -> None:
    heartbeat = Heartbeat("one", {"": "", "b": "stale"})
    assert Heartbeat.decode(StoredMessage("milo.publisher", 7, {}, heartbeat.encode())) == heartbeat
    assert Heartbeat.decode(StoredMessage("milo.publisher", 7, {}, b"")) is None
    with pytest.raises(ValueError, match=r"milo.publisher, sequence 7: not a message of milo-objects"):
        Heartbeat.decode(StoredMessage("milo.publisher", 7, {}, b"[]"))


@pytest.mark.parametrize(
    ("problems", "is_useful"), [({}, False), ({"": "stale"}, False), ({"a": "stale", "b": ""}, True)]
)
def test_heartbeat_is_useful_if_a_source_is_followed(problems: dict[str, str], *, is_useful: bool) -> None:
    assert Heartbeat("", problems).is_useful is is_useful


def test_scope_of_a_named_publisher_is_read_back() -> None:
    messages = [ScopeMessage(CLUSTER, state, 4, "a" * 200) for state in (Synced(NOW), Stale(NOW, "x" * 240))]
    assert b"publisher" not in ScopeMessage(CLUSTER, Synced(NOW), 4).encode().body
    assert [decode(stored(SCOPE, message))[1] for message in messages] == messages


@pytest.mark.parametrize(
    ("state", "ends"), [(Synced(NOW), False), (ScopeIsOver("WITHDRAWN"), False), (ScopeIsOver("DELETED"), True)]
)
def test_scope_that_is_withdrawn_ends_no_cluster(state: Synced | ScopeIsOver, ends: bool) -> None:
    cluster = FleetCluster(name="web", incarnation="i", uid="u")
    assert ScopeMessage(cluster, state, 1).ends_cluster is ends


def test_messages_that_cannot_be_decoded_are_known_by_their_subject() -> None:
    good, bad = ClusterSubject("web"), ClusterSubject("shop")
    message = ClusterMessage(msgspec.structs.replace(CLUSTER, name="web"))
    other = StoredMessage("milo.clusters", 1, {}, b"")
    found = decoded([stored(good, message), StoredMessage(str(bad), 5, {}, b"{"), other])
    assert found == {good: (message, stored(good, message).sequence), bad: (None, 5)}


def test_full_stream_gets_the_state_of_a_scope_before_what_has_grown() -> None:
    published = ScopeMessage(CLUSTER, Synced(NOW), 1, "one")
    grown = msgspec.structs.replace(CLUSTER, labels={"a": "b"})
    stale = ScopeMessage(grown, Stale(NOW, "x"), 1, "another")
    assert stale.within(published) == ScopeMessage(CLUSTER, Stale(NOW, "x"), 1, "one")
    assert stale.within(stale.within(published)) is stale
    for other in (
        None,
        ScopeMessage(CLUSTER, Synced(NOW), 2),
        ScopeMessage(msgspec.structs.replace(CLUSTER, uid="v"), Synced(NOW), 1),
    ):
        assert stale.within(other) is stale
    over = ScopeMessage(grown, ScopeIsOver("DELETED"), 1)
    assert over.within(published) is over
