"""A source of changes that reads the stream of a publisher, and the client of nothing else."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Final

from milo_kube.reflect.backoff import Backoff
from milo_kube.task_groups import in_own_task
from milo_objects.jetstream import NatsOptions, NatsSession, StreamLost, open_session
from milo_objects.kinds import Kind
from milo_objects.messages import Heartbeat, StoredMessage
from milo_objects.scope import ObjectStore
from milo_objects.stream_reader import ReadAgain, StreamReader
from milo_objects.subjects import PUBLISHER, ClusterSubject, kind_filter

__all__ = ["NatsOptions", "NatsSource"]

log = logging.getLogger("milo_objects")

RECONNECT: Final = Backoff(first_s=0.25, cap_s=15.0)
_HEALTHY_S: Final = 30.0


class NatsSource:
    """Reads what `milo-objects publish` writes.

    While NATS cannot be reached, or no publisher has been heard for 30 s, what is known stays, and is STALE.

    Kinds keep those of their fields that are published, and their label selectors need `metadata.labels` to be.

    With one kind, or with `cluster`, the consumer has a single filter, so that NATS' permissions can restrict it to
    that kind, or to that cluster.
    """

    def __init__(self, options: NatsOptions, *, cluster: str = "") -> None:
        """`cluster`: the key of the only cluster to read."""
        self._options = options
        self._cluster = cluster

    async def run(self, kinds: Sequence[Kind], store: ObjectStore) -> None:
        """Apply the changes to the store until canceled. Raises ValueError for two versions of a kind."""
        reader = StreamReader(kinds, store)
        filters = [kind_filter(kind.paths.group, kind.paths.plural, self._cluster) for kind in kinds]
        if self._cluster and len(filters) > 1:
            filters = [ClusterSubject(self._cluster).contents]
        failures, clock = 0, asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                await in_own_task(self._read(reader, filters))
            except StreamLost as error:
                failures = 1 if clock() - began > _HEALTHY_S else failures + 1
                if failures == 1:
                    log.warning("objects cannot be read from NATS; retrying: %s", error)
                reader.detach(str(error))
            await asyncio.sleep(RECONNECT.delay(failures, random.random))

    async def _read(self, reader: StreamReader, filters: Sequence[str]) -> None:
        async with open_session(self._options, "milo-objects") as session:
            await _read(session, reader, filters)


async def _read(session: NatsSession, reader: StreamReader, filters: Sequence[str]) -> None:
    info = await session.stream(is_checked=False)
    first = reader.attach(info.lineage, info.last_sequence, time.time())

    def receive(stored: StoredMessage, pending: int) -> None:
        try:
            reader.receive(stored, time.time())
        except ValueError as error:
            log.warning("a message is ignored: %s", error)
        except ReadAgain as error:
            session.lose(str(error))
            return
        if not pending:
            idle()

    def idle() -> None:
        reader.caught_up(time.time())

    is_live = False

    def hear(stored: StoredMessage, _: int) -> None:
        nonlocal is_live
        now = time.time()
        try:
            heartbeat = Heartbeat.decode(stored)
        except ValueError as error:
            log.warning("a heartbeat is ignored: %s", error)
        else:
            reader.heard(now if is_live else min(stored.at, now), now, heartbeat)  # later, since the clocks may differ
        is_live = True

    def listen() -> None:
        nonlocal is_live
        is_live = True

    # Publishers first, so that what is said of them is known when all objects are read.
    async with session.consumer([PUBLISHER], 1, hear, listen):
        await session.follow(filters, first, receive, idle)
