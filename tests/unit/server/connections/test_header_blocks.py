"""Header blocks of one connection."""

import random

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from milo_discoveryd.server.connections.header_blocks import (
    FRAME_COST,
    MOST_BYTES,
    MOST_CONTINUATIONS,
    HeaderBlocks,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, CONTINUED = HeadersFrame(1, b"x" * 100), ContinuationFrame(1, b"y" * 50)


def sent(*frames: Frame) -> bytes:
    return PREFACE + b"".join(frame.serialize() for frame in frames)


@pytest.mark.parametrize("size", [1, 5, 9, 64, 1 << 16])
def test_blocks_with_few_continuations_are_accepted_however_they_are_divided(size: int) -> None:
    frames = [
        SettingsFrame(0),
        *[HEADERS, *[CONTINUED] * MOST_CONTINUATIONS, DataFrame(1, b""), PingFrame(0, bytes(8))] * 3,
    ]
    data, blocks = sent(*frames), HeaderBlocks()
    assert all(blocks.accepts(data[at : at + size]) for at in range(0, len(data), size))


@pytest.mark.parametrize("payload", [b"", b"y", b"y" * 1000])
@pytest.mark.parametrize("seed", range(5))
def test_block_with_too_many_continuations_is_refused_at_that_frame(payload: bytes, seed: int) -> None:
    continued = ContinuationFrame(1, payload)
    data = sent(SettingsFrame(0), HEADERS, *[continued] * MOST_CONTINUATIONS)
    blocks, draw, at = HeaderBlocks(), random.Random(seed), 0
    while at < len(data):
        size = draw.randint(1, 40)
        assert blocks.accepts(data[at : at + size])
        at += size
    assert not blocks.accepts(continued.serialize())


def test_block_with_too_many_bytes_is_refused_and_the_next_block_starts_anew() -> None:
    half = b"x" * (MOST_BYTES // 2)
    blocks = HeaderBlocks()
    assert blocks.accepts(sent(*[HeadersFrame(1, half), ContinuationFrame(1, half)] * 3))
    assert not blocks.accepts(ContinuationFrame(1, b"y").serialize())


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_begun_and_reset_streams_are_counted(size: int) -> None:
    frames = [HEADERS, RstStreamFrame(1), DataFrame(3, RstStreamFrame(3).serialize()), RstStreamFrame(3)]
    data, blocks = sent(*frames), HeaderBlocks()
    assert all(blocks.accepts(data[at : at + size]) for at in range(0, len(data), size))
    assert blocks.cost == pytest.approx(1 + 3 * FRAME_COST)
    assert blocks.resets == 2


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_call_begins_with_the_frame_that_ends_its_header_block(size: int) -> None:
    whole = HeadersFrame(1, b"x" * 100, flags=["END_HEADERS"])
    ended, empty = ContinuationFrame(3, b"y" * 50, flags=["END_HEADERS"]), HeadersFrame(5, b"", flags=["END_HEADERS"])
    frames = [whole, DataFrame(1, b""), HEADERS, CONTINUED, ended, empty, HEADERS]
    data, blocks, begun = sent(*frames), HeaderBlocks(), list[int]()
    for at in range(0, len(data), size):
        assert blocks.accepts(data[at : at + size])
        begun += [at + start for start in blocks.begun]
    starts = [len(sent(*frames[:number])) for number in (0, 4, 5)]
    ends = [len(sent(*frames[:number])) for number in (1, 5, 6)]
    assert len(begun) == len(starts)
    for at, start, end in zip(begun, starts, ends, strict=True):
        assert start <= at < end
        assert at == start or at // size == (end - 1) // size


@pytest.mark.parametrize(
    "frame",
    [
        SettingsFrame(0),
        PingFrame(0, bytes(8)),
        PriorityFrame(1),
        WindowUpdateFrame(0, 1),
        DataFrame(1, b"x" * 16_000),
        GoAwayFrame(0, additional_data=b"x" * 1000),
    ],
)
def test_each_frame_that_begins_no_call_costs_a_part_of_one(frame: Frame) -> None:
    blocks = HeaderBlocks()
    assert blocks.accepts(sent(*[frame] * 4))
    assert blocks.cost == pytest.approx(4 * FRAME_COST)


def test_length_that_a_head_claims_costs_nothing() -> None:
    blocks = HeaderBlocks()
    assert blocks.accepts(PREFACE + b"\xff\xff\xff\x04" + bytes(5))
    assert blocks.cost == pytest.approx(FRAME_COST)


def test_content_is_not_read_as_frames() -> None:
    blocks = HeaderBlocks()
    assert blocks.accepts(sent(DataFrame(1, CONTINUED.serialize() * 100)))
    assert blocks.accepts(HEADERS.serialize())
