"""Memory per cluster after its frame was evicted, by kind of object, in this process.

Python's allocator rounds up to 16 bytes. Its overhead and the kernel's are not included.
"""

import enum
import sys
from collections import Counter, deque
from collections.abc import Iterable

import msgspec

from bench import in_process
from bench.setting import Samples, Setting
from milo_discoveryd.engagement.engagement import ClusterRecord, ClusterRecords, Engagements
from milo_discoveryd.fleet.source import ClusterSource
from milo_discoveryd.log.change_log import ChangeLog
from milo_discoveryd.model.cluster import Cluster, Target
from milo_discoveryd.objects.store import ObjectRecord, ObjectStore
from milo_discoveryd.telemetry.logging import configure

_GRAIN = 16
_KINDS: dict[type, str] = {
    ClusterRecord: "record",
    ObjectRecord: "object",
    Cluster: "cluster",
    Target: "target",
    str: "text",
    # A cluster's place in a dict by name and in a list by revision, and the revision itself.
    dict: "places",
    list: "places",
    int: "places",
}


async def measure(setting: Setting) -> Samples:
    configure("warning", "json")
    few, many = setting.scale.clusters, setting.scale.large
    before, after = _weighed(few), _weighed(many)
    kept = {kind: (after[kind] - before[kind]) / (many - few) for kind in sorted({*after, *before})}
    samples = {f"cluster_memory.{kind}": [figure] for kind, figure in kept.items()}
    samples["cluster_memory.bytes"] = [sum(figure for kind, figure in kept.items() if kind.endswith("_bytes"))]
    return samples


def _weighed(count: int) -> Counter[str]:
    decoder = in_process.decoder()
    source = in_process.source(in_process.observed(decoder, in_process.lines("ADDED", count, 100_000, "")))
    found: Counter[str] = Counter()
    for held in _reachable(source):
        found[f"{_KINDS.get(type(held), 'other')}_bytes"] += -(-sys.getsizeof(held) // _GRAIN) * _GRAIN
        found["objects"] += 1
        if isinstance(held, str):
            found["characters"] += len(held)
    return found


def _reachable(source: ClusterSource) -> Iterable[object]:
    seen: dict[int, object] = {}
    waiting: list[object] = [source.engagements, *(collection.store for collection in source.collections)]
    while waiting:
        held = waiting.pop()
        if id(held) not in seen:
            seen[id(held)] = held
            waiting += _held_by(held)
    return seen.values()


def _held_by(holder: object) -> Iterable[object]:
    if isinstance(holder, enum.Enum):
        return ()
    if isinstance(holder, dict):
        return (*holder.keys(), *holder.values())
    if isinstance(holder, list | tuple | deque):
        return holder
    if isinstance(holder, msgspec.Struct):
        return [getattr(holder, field) for field in holder.__struct_fields__]
    return vars(holder).values() if isinstance(holder, Engagements | ClusterRecords | ChangeLog | ObjectStore) else ()
