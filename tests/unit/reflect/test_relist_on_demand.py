"""A list that is asked for out of turn, to be held against another; and what versions tell of a server."""

import pytest

from milo_kube.reflect.messages import (
    FetchPage,
    Listed,
    ListEnded,
    ListStarted,
    ObjectChanged,
    ReadWatch,
    Relisting,
)
from tests.unit.reflect.life import START, Life, changed, listed, watching
from tests.unit.reflect.lines import seen


def test_relist_is_performed_on_request_despite_healthy_watch() -> None:
    life = watching()
    life.reflector.relist_by(START + 30.0)
    assert life.request == ReadWatch(START + 30.0)
    life.now += 20.0
    life.events(changed("a", "11"))
    assert life.request == ReadWatch(START + 30.0)
    life.now += 10.0
    assert life.silent() == [Relisting("Verification")]
    assert isinstance(life.request, FetchPage)


def test_watch_continues_if_relist_request_is_withdrawn() -> None:
    life = watching()
    before = life.request
    life.reflector.relist_by(START + 30.0)
    life.reflector.relist_by(None)
    assert life.request == before


def test_silence_before_the_list_is_wanted_is_silence() -> None:
    life = watching()
    life.reflector.relist_by(START + 1000.0)
    life.now += 250.0
    assert life.silent() == []


def relisted(life: Life, version: str) -> list[object]:
    life.reflector.relist_by(life.now)
    life.silent()
    return list(life.page(version=version))


def test_relist_with_later_version_is_of_same_server() -> None:
    life = watching()
    assert relisted(life, "10") == [ListStarted(), ListEnded()]
    life.opened()
    assert relisted(life, "11") == [ListStarted(), ListEnded()]


def test_relist_with_earlier_version_is_reported() -> None:
    life = watching()
    assert relisted(life, "9") == [ListStarted(), ListEnded(versions_went_back=True, version="9")]


def test_versions_of_events_count_as_those_of_lists() -> None:
    life = watching()
    assert life.events(changed("a", "15")) == [ObjectChanged(seen("a", "15"))]
    assert relisted(life, "14") == [ListStarted(), ListEnded(versions_went_back=True, version="14")]


def test_lists_are_older_until_the_server_has_caught_up() -> None:
    life = watching()
    relisted(life, "5")
    life.opened()
    assert relisted(life, "6") == [ListStarted(), ListEnded(versions_went_back=True, version="6")]
    life.opened()
    assert relisted(life, "10") == [ListStarted(), ListEnded()]


@pytest.mark.parametrize("version", ["", "opaque", "\u0665"])
def test_opaque_version_is_not_compared(version: str) -> None:
    life = listed()
    life.opened()
    life.reflector.relist_by(life.now)
    life.silent()
    assert list(life.page(seen("a"), version=version)) == [ListStarted(), Listed(seen("a")), ListEnded()]
