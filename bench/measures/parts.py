"""CPU time of the daemon's steps for a change, and CPU time and memory of a list of objects that reference clusters.

The steps run in this process, without the kernel, gRPC and asyncio.
"""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterable

from bench import in_process, projects
from bench.setting import Samples, Setting
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.cursor import Cursor
from milo_discoveryd.log.events import Event, EventType
from milo_discoveryd.log.filter import EVERYTHING
from milo_discoveryd.model.contributions import ObservedObject
from milo_discoveryd.sources.project_control_plane import ProjectControlPlaneKind
from milo_discoveryd.telemetry.logging import configure
from milo_kube.reflect.messages import Listed, ListEnded, ListStarted, ObjectChanged


async def measure(setting: Setting) -> Samples:
    configure("warning", "json")
    samples: Samples = {}
    for _ in range(setting.scale.rounds):
        for name, figure in {**_round(setting.scale.clusters), **_reduced(setting.scale.clusters)}.items():
            samples.setdefault(f"parts.{name}", []).append(figure)
    return samples


def _round(count: int) -> dict[str, float]:
    changed = in_process.lines("MODIFIED", count, count + 1, "changed")
    decoder, encode = in_process.decoder(), in_process.encode()
    source = in_process.source(in_process.observed(decoder, in_process.lines("ADDED", count, 1, "")))
    log, now = source.changes.log, time.monotonic()
    read_up_to = log.head
    changes = [ObjectChanged(observation) for observation in in_process.observed(decoder, changed)]

    def commit() -> None:
        for change in changes:
            for _ in source.apply(source.collections[0], [change], now):
                pass

    def read(after: int) -> None:
        reader = Cursor(log, EVERYTHING, after)
        while batch := reader.next_batch():
            assert batch.slice.data

    control_planes = in_process.lines("MODIFIED", count, count + 1, "changed", projects.control_plane)
    control_plane_decoder = in_process.decoder(
        ProjectControlPlaneKind(address_template="milo-apiserver.{namespace}.svc:6443")
    )
    took = {
        "decode": _timed(lambda: in_process.observed(decoder, changed)),
        "decode_control_plane": _timed(lambda: in_process.observed(control_plane_decoder, control_planes)),
        "commit": _timed(commit),
    }
    clusters = list(source.engagements.clusters())
    took["encode"] = _timed(lambda: [encode(Event(EventType.UPDATED, cluster)) for cluster in clusters])
    read(read_up_to)  # encodes the frames
    took["slice"] = _timed(lambda: read(read_up_to + 1))
    # The events that subscribers receive.
    frame_bytes = sum(len(batch.slice.data) for batch in iter(Cursor(log, EVERYTHING, None).next_batch, None)) / count
    return {**{f"{name}_us": seconds / count * 1e6 for name, seconds in took.items()}, "frame_bytes": frame_bytes}


def _reduced(count: int) -> dict[str, float]:
    """Return the time and the memory per cluster to commit a list of decoded objects that reference clusters."""
    lines = [in_process.consumer(index) for index in range(count)]

    def commit(source: ClusterSource, seen: Iterable[ObservedObject]) -> None:
        for _ in source.apply(
            source.collections[0], [ListStarted(), *map(Listed, seen), ListEnded()], time.monotonic()
        ):
            pass

    source, decoder = in_process.consumers()
    decoded = in_process.observed(decoder, lines)
    took = _timed(lambda: commit(source, decoded))
    assert source.engagements.engaged == count
    source, decoder = in_process.consumers()
    gc.collect()
    tracemalloc.start()
    try:
        commit(source, in_process.observed(decoder, lines))
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"reduced_us": took / count * 1e6, "reduced_bytes": taken / count}


def _timed(do: Callable[[], object]) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began
