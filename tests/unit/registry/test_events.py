"""How frames become messages."""

import pytest

from milo_discoveryd.registry.events import SHARED_BYTES, Frames

LONG = b"x" * SHARED_BYTES


@pytest.mark.parametrize("frames", [(), (b"a",), (b"a", b"b"), (LONG, b"a")], ids=["none", "one", "two", "long"])
def test_a_message_is_the_join_and_what_follows(frames: tuple[bytes, ...]) -> None:
    made = Frames(frames)
    for rest in (b"one", b"other", b"one", b""):
        assert made.followed_by(rest) == b"".join(frames) + rest


def test_a_long_message_is_shared_by_those_for_whom_it_is_the_same() -> None:
    frames = Frames([LONG])
    message = frames.followed_by(b"one")
    assert frames.followed_by(b"one") is message
    assert frames.followed_by(b"other") == LONG + b"other"
