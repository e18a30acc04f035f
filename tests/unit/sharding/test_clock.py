"""The clock with which a member measures its fence, and the time since other members renewed their Leases."""

import time

import pytest

from milo_discoveryd.sharding.group import boottime


def test_sharding_clock_advances_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_MONOTONIC does not advance then, and a wall clock can be set."""
    shown = {time.CLOCK_BOOTTIME: 7200.0, time.CLOCK_MONOTONIC: 60.0, time.CLOCK_REALTIME: 1e9}
    monkeypatch.setattr(time, "clock_gettime", shown.__getitem__)
    assert boottime() == 7200.0
