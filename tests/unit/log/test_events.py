"""Slices of frames."""

import msgspec
import pytest

from milo_discoveryd.log.change_log import slice_of
from milo_discoveryd.log.events import EventType, Frame
from tests.unit.fleet.fleets import cluster


def frame(kind: EventType, source: str = "") -> Frame:
    of = cluster()
    target = msgspec.structs.replace(of.target, name=f"{source}#a" if source else "a", source=source)
    return Frame(kind, msgspec.structs.replace(of, target=target), source, kind.value.encode())


def test_slice_joins_its_frames() -> None:
    frames = [frame(EventType.ENGAGED), frame(EventType.UPDATED)]
    assert slice_of(frames).frames == tuple(frames)
    assert slice_of(frames).data == b"ENGAGEDUPDATED"


@pytest.mark.parametrize(
    ("kind", "growth"), [(EventType.ENGAGED, {"": 2}), (EventType.UPDATED, {}), (EventType.DISENGAGED, {"": -2})]
)
def test_slice_growth_is_its_engagements_minus_its_disengagements(kind: EventType, growth: dict[str, int]) -> None:
    assert slice_of([frame(kind)] * 2).growth == growth


def test_slice_growth_is_counted_for_each_source() -> None:
    frames = [frame(EventType.ENGAGED, source) for source in ("eu", "us", "eu")]
    assert slice_of(frames).growth == {"eu": 2, "us": 1}
