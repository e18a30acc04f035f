"""First lists begin at a limited rate, and tenants take turns."""

import asyncio
from datetime import timedelta

import pytest

from milo_discovery.testing import fake_clock
from milo_kube.rate_limit import Rate
from milo_kube.tenants import Tenant
from milo_objects import first_lists
from milo_objects.first_lists import FirstLists

EVIL, SHOP, BANK = ("", "evil"), ("", "shop"), ("", "bank")


class Scopes:
    """Scopes that wait for their first lists, and the tenants of those that have begun: hours are a list apart."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(first_lists, "FIRST_LISTS", Rate(per_second=1 / 3600, burst=2.0))
        self._first_lists = FirstLists()
        self.begun: list[Tenant] = []

    async def engage(self, tenant: Tenant, count: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._follow(tenant)) for _ in range(count)]
        await self.settle()
        return tasks

    async def _follow(self, tenant: Tenant) -> None:
        await self._first_lists.turn(tenant)
        self.begun.append(tenant)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def after_hours(self, count: int) -> list[Tenant]:
        """Return the tenants of the scopes that have begun by then."""
        with fake_clock() as clock:
            for _ in range(count):
                clock.advance(timedelta(hours=1))
                await self.settle()
        return self.begun


async def test_tenants_take_turns_at_the_rate_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = Scopes(monkeypatch)
    await scopes.engage(EVIL, 8)
    assert scopes.begun == [EVIL, EVIL]
    await scopes.engage(SHOP, 2)
    await scopes.engage(BANK, 1)
    assert await scopes.after_hours(4) == [EVIL, EVIL, EVIL, SHOP, BANK, EVIL]
    assert await scopes.after_hours(2) == [EVIL, EVIL, EVIL, SHOP, BANK, EVIL, SHOP, EVIL]
    await scopes.after_hours(20)
    assert len(scopes.begun) == 11


async def test_scopes_of_an_ended_cluster_have_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    scopes = Scopes(monkeypatch)
    ended = await scopes.engage(EVIL, 8)
    for task in ended:
        task.cancel()
    await scopes.settle()
    assert await scopes.after_hours(1) == [EVIL, EVIL]
    await scopes.engage(SHOP, 3)
    assert scopes.begun == [EVIL, EVIL, SHOP]
    [ended] = await scopes.engage(BANK, 1)
    assert await scopes.after_hours(1) == [EVIL, EVIL, SHOP, SHOP]
    asyncio.get_running_loop().call_later(1.0, ended.cancel)  # just before its turn
    await scopes.after_hours(2)
    assert scopes.begun == [EVIL, EVIL, SHOP, SHOP, SHOP]
    assert ended.cancelled()
    assert not scopes._first_lists._waiting
