"""Lists on request despite a healthy watch, lists at a given time after `give_up`, and lists of an older version."""

import math

import pytest

from kube.tests.unit.reflect.reflector_driver import PAGES, START, ReflectorDriver, changed, watching
from milo_kube.reflect.messages import (
    Failure,
    FetchPage,
    ListEnded,
    ListStarted,
    OpenWatch,
    ReadWatch,
    Relisting,
    Wait,
)
from milo_kube.reflect.view_status import ViewState


def test_relist_is_performed_on_request_despite_healthy_watch() -> None:
    driver = watching()
    driver.reflector.relist_by(START + 30.0)
    assert driver.request == ReadWatch(START + 30.0)
    driver.now += 20.0
    driver.events(changed("a", "11"))
    assert driver.request == ReadWatch(START + 30.0)
    driver.now += 10.0
    assert driver.silent() == [Relisting("Verification")]
    assert isinstance(driver.request, FetchPage)


def test_watch_continues_if_relist_request_is_withdrawn() -> None:
    driver = watching()
    before = driver.request
    driver.reflector.relist_by(START + 30.0)
    driver.reflector.relist_by(None)
    assert driver.request == before


def test_silent_watch_is_reopened_before_a_relist_that_is_requested_for_later() -> None:
    driver = watching()
    driver.reflector.relist_by(START + 1000.0)
    driver.now += 250.0
    assert driver.silent() == []
    assert isinstance(driver.request, OpenWatch)


def relisted(driver: ReflectorDriver, version: str) -> list[object]:
    driver.reflector.relist_by(driver.now)
    driver.silent()
    return list(driver.page(version=version))


@pytest.mark.parametrize("version", ["11", "10", "9", "", "opaque", "\u0665"])
def test_list_is_reported_with_its_version(version: str) -> None:
    """Whether it is older than the known state is judged by those who have that state."""
    assert relisted(watching(), version) == [ListStarted(), ListEnded(version)]


def test_reflector_that_starts_over_lists_again_with_backoff() -> None:
    for driver in (watching(), ReflectorDriver(PAGES)):
        failure, waits = Failure("UnexpectedError", "see the log"), []
        for _ in range(3):
            driver.reflector.start_over(failure, driver.now)
            assert isinstance(driver.request, Wait)
            waits.append(driver.request.until - driver.now)
            driver.now = driver.request.until
            assert driver.request == FetchPage("", PAGES.page_size)
        assert waits == [PAGES.backoff.delay(attempt, lambda: 0.0) for attempt in (1, 2, 3)]
        assert (driver.reflector.status.state, driver.reflector.status.reason) == (ViewState.STALE, "UnexpectedError")


def test_reflector_that_gives_up_a_list_or_watch_lists_again_at_the_given_time() -> None:
    for driver in (watching(), ReflectorDriver(PAGES)):
        until = driver.now + 300.0
        assert driver.give_up(Failure("OverBudget", "too many objects"), until) == [ListStarted()]
        assert driver.request == Wait(until)
        assert not driver.reflector.is_reading
        status = driver.reflector.status
        assert (status.state, status.reason, status.message) == (ViewState.STALE, "OverBudget", "too many objects")
        assert driver.reflector.trusted_from == math.inf
        driver.now = until
        assert driver.request == FetchPage("", PAGES.page_size)
