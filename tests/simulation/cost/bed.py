"""A daemon with the production settings, an API server without faults, and subscribers, on virtual time."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from math import inf
from typing import Any, TypeVar

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.config import Settings
from milo_discoveryd.fleet.source import ClusterSource, SourceDescription, SourcePolicy
from milo_discoveryd.log.change_log import BATCH_BYTES, STALE_SLOTS
from milo_discoveryd.model.cluster import DeclaredTarget, key_of
from milo_discoveryd.objects.pending_deletions import PendingDeletions
from milo_discoveryd.wiring.source import set_targets
from tests.simulation.cost.api import Api
from tests.simulation.cost.meter import InOrder, Meter, MeteredLoop
from tests.simulation.seeded.daemon import Daemon, Traits
from tests.simulation.seeded.loop import run_on
from tests.simulation.seeded.tokens import TokenApi
from tests.support.logs import capture_logs

T = TypeVar("T")
SETTLE_S = 0.06
"""More than the longest delay of a notification."""
TOKEN_LIFE_S = 60.0
_SETTINGS = Settings()
_TRAITS = Traits(
    streaming=False,
    page_size=_SETTINGS.watch.page_size,
    grace_s=_SETTINGS.not_ready_grace / timedelta(seconds=1),
    batch_bytes=BATCH_BYTES,
    stale_slots=STALE_SLOTS,
    tombstones=_SETTINGS.tombstones.count,
    has_memory=False,
    token_life_s=TOKEN_LIFE_S,
    objects_limit=_SETTINGS.watch.objects_limit,
)


class Subscriber:
    """A subscriber, which reads at once by default."""

    def __init__(
        self,
        daemon: Daemon,
        *,
        resume_revision: str = "",
        with_kubeconfigs: bool = False,
        reads: asyncio.Event | None = None,
    ) -> None:
        """The event `reads` is set once the subscriber may read beyond its first message; None if it never waits."""
        self.messages = 0
        self._reads = reads
        self._last = b""
        request = pb.WatchClustersRequest(resume_revision=resume_revision, include_kubeconfigs=with_kubeconfigs)
        self._call = daemon.call(request, "subscriber", self._receive)

    @property
    def revision(self) -> str:
        return pb.WatchClustersResponse.FromString(self._last).revision

    async def end(self) -> None:
        self._call.cancel()
        with suppress(asyncio.CancelledError):
            await self._call

    async def _receive(self, message: bytes) -> None:
        self.messages += 1
        self._last = message
        await (asyncio.sleep(0) if self._reads is None else self._reads.wait())


class Bed:
    def __init__(self, loop: MeteredLoop, clusters: int, *, suffix: str = "") -> None:
        self.api = Api(clusters, _SETTINGS.watch.page_size, suffix=suffix)
        self.clusters = clusters
        random = InOrder()
        tokens = TokenApi(random, lambda *_: None, TOKEN_LIFE_S, lambda: loop.wall)
        self._loop = loop
        self.daemon = Daemon(
            self.api,  # type: ignore[arg-type]
            tokens,
            "0" * 16,
            _TRAITS,
            None,
            random,
            lambda *_: None,
            lambda _: None,
        )
        self.subscribers: list[Subscriber] = []

    def subscribe(self, count: int, *, resume_revision: str = "", with_kubeconfigs: bool = False) -> None:
        for _ in range(count):
            subscriber = Subscriber(self.daemon, resume_revision=resume_revision, with_kubeconfigs=with_kubeconfigs)
            self.subscribers.append(subscriber)

    def add_sources(self, count: int) -> None:
        """Add sources of one cluster each. The clusters have addresses, so that claims to these are evaluated."""
        for number in range(count):
            name = f"source-{number:03}"
            source = ClusterSource(
                self.daemon.fleet.changes,
                self.daemon.ledger,
                SourcePolicy(pending_deletions=lambda: PendingDeletions(lambda: 0.5)),
                SourceDescription(name=name),
            )
            place = (f"https://{name}.test",)
            target = DeclaredTarget(
                name=key_of(name, "only"), source=name, uid=name, place=place, object_namespace="", object_name="only"
            )
            set_targets(self.daemon.fleet.add(source), [target], self._loop.time())

    async def list_pages(self, size: int, token: str = "", most: float = inf) -> str:
        """Read pages of a list of all clusters; return the token of the next page."""
        read = 0
        while (token or not read) and read < most:
            page = await self.daemon.list_clusters(pb.ListClustersRequest(page_size=size, page_token=token))
            token, read = page.next_page_token, read + 1
        return token

    def subscribe_slowly(self) -> None:
        """Subscribe, and read only the first message."""
        self.subscribers.append(Subscriber(self.daemon, reads=asyncio.Event()))

    async def settle(self, seconds: float = SETTLE_S) -> None:
        """Wait until all effects of earlier steps have happened."""
        await asyncio.sleep(seconds)
        self.daemon.check()

    def would_exceed_limit(self, changes: int) -> bool:
        """Return whether the objects would exceed `watch.objects_limit` if `changes` changes per object counted too."""
        return self.daemon.collection.store.weight.used * (1 + changes) > _SETTINGS.watch.objects_limit

    async def sync(self) -> None:
        await self.settle()
        assert self.daemon.source.engagements.engaged == self.clusters

    @contextmanager
    def measured(self, meter: Meter) -> Iterator[None]:
        """Measure the callbacks that run in the block."""
        self._loop.meter = meter
        try:
            yield
        finally:
            self._loop.meter = None

    async def end(self) -> None:
        await self.daemon.kill()


def run(steps: Callable[[MeteredLoop], Coroutine[Any, Any, T]]) -> T:
    """Run steps on a loop with virtual time, and without the garbage collector: it would close the generators of
    earlier tests in the callbacks that are measured, which counts as calls."""
    loop = MeteredLoop()
    gc.collect()
    gc.disable()
    try:
        with capture_logs() as lines:
            result = run_on(loop, steps(loop))
        assert lines.errors == []
        return result
    finally:
        gc.enable()
