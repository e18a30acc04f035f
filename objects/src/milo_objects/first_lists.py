"""Limits how many first lists begin at once. Tenants take turns, because one of them may have very many clusters."""

from __future__ import annotations

import asyncio
from typing import Final

from milo_kube.rate_limit import Rate, TokenBucket
from milo_kube.tenants import Tenant, TenantTurns

FIRST_LISTS: Final = Rate(per_second=200.0, burst=400.0)
"""How many scopes begin their first list: an API server refuses (429) when thousands begin at once."""
_SHORTEST_S: Final = 0.001
"""A shorter wait can be a rounding error, which may be too small to change the clock."""


class FirstLists:
    """The scopes that wait to begin their first list. A round has one scope of each tenant."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(FIRST_LISTS, self._loop.time())
        self._waiting = TenantTurns[tuple[Tenant, asyncio.Future[None]]](lambda waiting: waiting[0])
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, tenant: Tenant) -> None:
        """Wait until a scope of the tenant may begin."""
        turn = self._loop.create_future()
        self._waiting.add((tenant, turn))
        if self._timer is None:
            self._begin_due()
        try:
            await turn
        finally:
            self._waiting.discard((tenant, turn))

    def _begin_due(self) -> None:
        self._timer = None
        while self._waiting:
            if wait_s := self._bucket.take(self._loop.time()):
                self._timer = self._loop.call_later(max(wait_s, _SHORTEST_S), self._begin_due)
                return
            _, turn = self._waiting.pop()
            if not turn.done():  # it can have been canceled in the same iteration of the event loop
                turn.set_result(None)
