"""Encoding of the state file: a restart uses all of it or none."""

import math
import tracemalloc
from io import BytesIO
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from milo_discoveryd.model.cluster import SuspensionReason, Target
from milo_discoveryd.state_file import encoding
from milo_discoveryd.state_file.encoding import (
    StateFileError,
    StateOrigin,
    StoredCluster,
    StoredFleet,
    StoredObject,
    decode,
    write,
)
from tests.support.stored_fleets import encode

ORIGIN = StateOrigin("https://milo.test", "project")


def kept(name: str) -> StoredCluster:
    target = Target(
        name=name,
        uid=f"project-{name}",
        place=(f"https://milo.test/{name}",),
        organization="acme",
        labels=(("env", "prod"),),
        annotations=(("note", "é"),),
        deletion_requested_at=12.5,
        deletion_message="waiting",
        suspensions=(SuspensionReason("Billing", 5.0, "Consumer"),),
    )
    return StoredCluster(f"uid-{name}", target, 1000.25)


IMAGE = StoredFleet(ORIGIN, 2000.0, (kept("alpha"), kept("beta")), positions={"0123456789abcdef": 7})


class Discarding(BytesIO):
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


@pytest.mark.parametrize("clusters", [1, 99, 100, 101, 250])
def test_state_file_round_trips(clusters: int) -> None:
    stored = tuple(StoredObject(0, f"o-{number}", "u", ("a", "b")) for number in range(clusters))
    fleet = msgspec.structs.replace(IMAGE, clusters=IMAGE.clusters * clusters, objects=stored)
    assert decode(encode(fleet), ORIGIN) == fleet


def test_large_fleet_is_written_in_portions() -> None:
    large = kept("x" * 10_000)
    tracemalloc.start()
    try:
        write(StoredFleet(ORIGIN, 2000.0, (large,) * 1000), Discarding())
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_state_file_of_empty_fleet_round_trips() -> None:
    empty = StoredFleet(ORIGIN, 2000.0, ())
    assert decode(encode(empty), ORIGIN) == empty


def test_clusters_of_a_state_file_share_equal_texts() -> None:
    """As those of an API server do: a fleet must not take more memory after a restart."""
    clusters = tuple(
        StoredCluster(uid, replace(kept(uid).target, uid=uid, labels=(("env", "prod"), ("name", name))), 1.0)
        for uid, name in (("a", "x"), ("b", "y"), ("c", "x"))
    )
    first, second, third = decode(encode(StoredFleet(ORIGIN, 2000.0, clusters)), ORIGIN).clusters
    assert (first, second, third) == clusters
    assert first.uid is first.target.uid
    assert first.target.organization is second.target.organization
    assert first.target.labels is third.target.labels
    assert first.target.labels[0] is second.target.labels[0]
    assert first.target.labels[1][0] is second.target.labels[1][0]


def test_truncated_state_file_is_rejected() -> None:
    data = encode(IMAGE)
    for end in range(len(data)):
        with pytest.raises(StateFileError):
            decode(data[:end], ORIGIN)


def test_state_file_with_corrupted_byte_is_rejected() -> None:
    data = bytearray(encode(IMAGE))
    for place in range(len(data)):
        data[place] ^= 0x01
        with pytest.raises(StateFileError):
            decode(bytes(data), ORIGIN)
        data[place] ^= 0x01


def test_state_file_of_another_source_is_rejected() -> None:
    with pytest.raises(
        StateFileError, match=r"another source \(mode project at https://milo.test; .* https://other.test"
    ):
        decode(encode(IMAGE), StateOrigin("https://other.test", "project"))


def test_state_file_of_newer_format_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "FORMAT", encoding.FORMAT + 1)
    data = encode(IMAGE)
    monkeypatch.undo()
    with pytest.raises(
        StateFileError, match=f"format {encoding.FORMAT + 1}; this version reads format {encoding.FORMAT}"
    ):
        decode(data, ORIGIN)


@pytest.mark.parametrize(
    "body",
    [
        b"\x93\x01\x02\x03",
        msgspec.msgpack.encode(IMAGE).replace(b"beta", b"bet\xac"),
        b"\x91" * 100_000,
        msgspec.msgpack.encode(StoredFleet(ORIGIN, math.nan, ())),
        msgspec.msgpack.encode(
            StoredFleet(ORIGIN, 1.0, (msgspec.structs.replace(kept("alpha"), engaged_at=math.inf),))
        ),
    ],
    ids=["wrong-type", "invalid-utf8", "too-deep", "nan-time", "infinite-time"],
)
def test_state_file_with_invalid_content_and_valid_checksum_is_rejected(body: bytes) -> None:
    data = b"milo-discoveryd state %d %s\n%s" % (encoding.FORMAT, encoding._checksum(body), body)
    with pytest.raises(StateFileError, match="content"):
        decode(data, ORIGIN)


def test_very_long_state_file_format_number_is_rejected_and_truncated_in_the_error() -> None:
    with pytest.raises(StateFileError, match="format 99999999999999999999;"):
        decode(b"milo-discoveryd state " + b"9" * 5000 + b" x\n", ORIGIN)


@given(st.binary(max_size=200))
def test_state_file_of_arbitrary_bytes_is_rejected(data: bytes) -> None:
    with pytest.raises(StateFileError):
        decode(data, ORIGIN)
