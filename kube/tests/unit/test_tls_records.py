"""TLS records without keys: their number, and the key exchange that a server selects."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_kube.http.tls_records import RecordCounter, ServerHello

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
CIPHER = b"\x13\x01\0"
VERSIONS = b"\0\x2b\0\x02\x03\x04"
CCS, ALERT, HELLO_REQUEST = b"\x14\x03\x03\0\x01\x01", b"\x15\x03\x03\0\x02\x01\0", b"\0\0\0\0"


def record(*messages: bytes, kind: int = 22) -> bytes:
    content = b"".join(messages)
    return bytes([kind]) + b"\x03\x03" + len(content).to_bytes(2) + content


def hello(
    group: int = 0x100,
    random: bytes = RETRY,
    session: bytes = bytes(32),
    kind: int = 2,
    extensions: bytes | None = None,
) -> bytes:
    if extensions is None:
        extensions = VERSIONS + b"\0\x33\0\x02" + group.to_bytes(2)
    content = b"\x03\x03" + random + bytes([len(session)]) + session + CIPHER + len(extensions).to_bytes(2) + extensions
    return bytes([kind]) + len(content).to_bytes(3) + content


def read(stream: bytes, size: int) -> None:
    reader = ServerHello()
    for at in range(0, len(stream), size):
        reader.read(stream[at : at + size])


@given(st.integers(0, 2), st.integers(0, 120), st.binary(max_size=40), st.integers(0, 40), st.integers(1, 50))
def test_arbitrary_bytes_are_read_or_refused(kind: int, at: int, put: bytes, gone: int, size: int) -> None:
    stream = (record(hello()), record(HELLO_REQUEST) + record(hello(0x17)), b"")[kind]
    with suppress(ConnectionAbortedError):
        read(stream[:at] + put + stream[at + gone :], size)


@given(
    st.lists(st.integers(0, 40), max_size=20), st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 5)
)
def test_records_are_counted_in_pieces_of_any_size(sizes: list[int], cuts: list[int], most: int) -> None:
    stream = b"".join(record(bytes(size)) for size in sizes)
    starts = {sum(5 + size for size in sizes[:number]) for number in range(len(sizes))}
    counter, count, at, turn = RecordCounter(), 0, 0, 0
    while at < len(stream):
        piece = stream[at : at + cuts[turn % len(cuts)]]
        size, begun = counter.take(piece, most)
        assert begun <= most
        assert size == len(piece) or (begun == most and at + size in starts)
        assert size > 0
        at, turn, count = at + size, turn + 1, count + begun
    assert count == len(sizes)


@pytest.mark.parametrize("before", [b"", CCS, ALERT, record(HELLO_REQUEST), record() + record(HELLO_REQUEST) + CCS])
@pytest.mark.parametrize("session", [b"", bytes(32)])
@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("group", [0x100, 0x104, 0x1FF])
def test_selection_of_a_finite_field_is_refused(before: bytes, session: bytes, size: int, group: int) -> None:
    stream = before + record(HELLO_REQUEST, hello(group, session=session))
    with pytest.raises(ConnectionAbortedError, match="finite-field Diffie-Hellman"):
        read(stream, size)


@pytest.mark.parametrize(
    "first",
    [
        record(hello(0x17)),
        record(hello(0x1D), b"more"),
        record(hello(random=bytes(32))),
        record(hello(kind=1)),
        record(hello(extensions=VERSIONS)),
        record(b"\2\0\0\x22\3\3" + RETRY),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        record(bytes(100), kind=23),
    ],
    ids=["P-256", "X25519", "no retry", "no hello", "no group", "cut short", "no TLS", "data"],
)
def test_other_first_messages_are_left_to_openssl(first: bytes) -> None:
    reader = ServerHello()
    reader.read(first[:3])
    assert not reader.is_read
    reader.read(first[3:])
    assert reader.is_read


@pytest.mark.parametrize("cut", [1, 3, 4, 40, -1])
def test_first_message_in_several_records_is_refused(cut: int) -> None:
    """Otherwise its content could be hidden from this reader."""
    message = hello()
    reader = ServerHello()
    with pytest.raises(ConnectionAbortedError, match="is not in one record"):
        reader.read(record(message[:cut]) + record(message[cut:]))
