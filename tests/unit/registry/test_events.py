"""Assembly of messages from shared frames."""

import pytest

from milo_discoveryd.registry.events import SHARED_BYTES, Frames

LONG = b"x" * SHARED_BYTES


@pytest.mark.parametrize("frames", [(), (b"a",), (b"a", b"b"), (LONG, b"a")], ids=["none", "one", "two", "long"])
def test_frames_message_is_joined_frames_and_trailing_bytes(frames: tuple[bytes, ...]) -> None:
    made = Frames(frames)
    for rest in (b"one", b"other", b"one", b""):
        assert made.followed_by(rest) == b"".join(frames) + rest


def test_large_frames_message_is_shared_between_subscribers() -> None:
    frames = Frames([LONG])
    message = frames.followed_by(b"one")
    assert frames.followed_by(b"one") is message
    assert frames.followed_by(b"other") == LONG + b"other"


def test_frames_are_counted_once_for_all_subscribers() -> None:
    counted: list[Frames] = []

    def count(frames: Frames) -> int:
        counted.append(frames)
        return len(frames)

    frames = Frames([b"a", b"bc"])
    assert [frames.counted(count) for _ in range(2)] == [2, 2]
    assert counted == [frames]
