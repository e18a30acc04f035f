"""Holds each object after a reconcile that writes, until the caches contain the writes; rate-limits such reconciles."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from milo_controllers.informer import Informer
from milo_controllers.kinds import CacheKey
from milo_controllers.own_writes import WITHIN_S, OwnWrites, Write
from milo_controllers.work_queue import ObjectKey
from milo_kube.rate_limit import KeyedBuckets, Rate

log = logging.getLogger("milo_controllers")

_WRITING = Rate(per_second=5.0, burst=20.0)
"""Rate limit of an object's reconciles that write: each write may cause the next reconcile."""
_LOG_AGAIN_S = 10.0


class WrittenCluster(Protocol):
    """An engaged cluster to which reconciles write."""

    @property
    def informers(self) -> Mapping[CacheKey, Informer]: ...
    @property
    def own_writes(self) -> OwnWrites: ...


class WriteHolds:
    """The held objects of one controller. `release` is called with each object that may be reconciled again."""

    def __init__(self, controller: str, release: Callable[[ObjectKey], None]) -> None:
        self._controller = controller
        self._release = release
        self._buckets: KeyedBuckets[ObjectKey] = KeyedBuckets(10_000)
        self._throttled: dict[str, float] = {}
        """When throttling was last logged, by cluster."""

    def hold(self, member: WrittenCluster, key: ObjectKey, writes: Collection[Write], now: float) -> bool:
        """Hold an object because of the writes of its reconcile; return whether it is held."""
        if not writes:
            return False
        loop = asyncio.get_running_loop()
        # With jitter, because objects of one kind are often created, and first changed, at the same time.
        pause_s = self._buckets.bucket(key, _WRITING, now).charge(now) * (1 + random.random() / 2)  # noqa: S311
        if pause_s:
            self._log_throttled(key, now)

        def settle() -> None:
            timer.cancel()
            if (rest_s := now + pause_s - loop.time()) > 0:
                loop.call_later(rest_s, self._release, key)
            else:
                self._release(key)

        def give_up() -> None:
            if held is not None:
                member.own_writes.give_up(held)
            settle()

        timer = loop.call_later(WITHIN_S, give_up)
        held = member.own_writes.hold(writes, member.informers.values(), settle)
        if held is not None:
            return True
        timer.cancel()
        if pause_s:
            loop.call_later(pause_s, self._release, key)
        return bool(pause_s)

    def _log_throttled(self, key: ObjectKey, now: float) -> None:
        if now - self._throttled.get(key.cluster, -_LOG_AGAIN_S) >= _LOG_AGAIN_S:
            recent = {cluster: at for cluster, at in self._throttled.items() if now - at < _LOG_AGAIN_S}
            self._throttled = recent | {key.cluster: now}
            log.warning(
                "%s: %s is reconciled at most %g times per second, because each reconcile writes: compare before "
                'writing, or use on="generation"',
                *(self._controller, key, _WRITING.per_second),
            )
