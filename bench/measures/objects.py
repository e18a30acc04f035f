"""Objects of all clusters in Python, beside the caches of controllers: seconds, CPU time and memory of two kinds.

The control planes are those of a sandbox in a process of its own, over TLS and HTTP/1.1.
"""

from bench.measures.controllers import ControlPlanes, control_planes
from bench.setting import Samples, Setting

WAYS = ("objects", "caches")
KINDS = 2


async def measure(setting: Setting) -> Samples:
    few, many = setting.scale.objects
    found: Samples = {}
    rss_kib: dict[tuple[str, int], list[float]] = {}
    for count in (few, many):
        async with control_planes(setting, count) as place:
            for _ in range(setting.scale.rounds):
                for way in WAYS:
                    seconds, cpu_s, kib, requests = await _read(place, way)
                    rss_kib.setdefault((way, count), []).append(kib)
                    if count == many:
                        figures = {"seconds": seconds, "cpu_s": cpu_s, "rss_mib": kib / 1024, "requests": requests}
                        for name, value in figures.items():
                            found.setdefault(f"objects.{way}.{name}", []).append(value)
    for way in WAYS:
        pairs = zip(rss_kib[way, few], rss_kib[way, many], strict=True)
        found[f"objects.{way}.kib_per_scope"] = [(high - low) / (many - few) / KINDS for low, high in pairs]
    for name in ("cpu_s", "rss_mib", "kib_per_scope"):
        values = zip(found[f"objects.objects.{name}"], found[f"objects.caches.{name}"], strict=True)
        found[f"objects.{name}_ratio"] = [ours / theirs for ours, theirs in values]
    return found


async def _read(place: ControlPlanes, way: str) -> tuple[float, float, float, float]:
    """Return seconds, CPU time and memory of a process that reads all clusters, and the requests of it."""
    before = await place.milo.requests()
    async with place.operator("bench.objects_process", way, objects=1) as reader:
        seconds = await reader.working()
        cpu_s = reader.cpu_s
        return seconds, cpu_s, await reader.settled_kib(), await place.milo.requests() - before
