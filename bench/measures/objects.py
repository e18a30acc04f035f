"""Objects of all clusters in Python, beside the caches of controllers: seconds, CPU time and memory of two kinds.

The control planes are those of a sandbox in a process of its own, over TLS and HTTP/1.1, or with `--real` Milo's. With
Go, they are measured again on an API server in Go, over HTTP/2, which Milo speaks.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench import peers
from bench.daemon import daemon as running_daemon
from bench.measures import go, milo_cost, rotation
from bench.measures.controllers import LIFE_S, OBJECTS, Operator, control_planes, running
from bench.milo import RealMilo
from bench.setting import Samples, Setting

WAYS = ("objects", "caches")
SECOND_KIND = {"": "v1/namespaces", "http2.": "apps/v1/deployments"}
"""The kind beside ConfigMaps, by the prefix of its figures: the server in Go has no namespaces."""
_KINDS = 2


async def measure(setting: Setting) -> Samples:
    found = await _measured(setting, "", None)
    binary = peers.operator() if setting.scale.with_go and not setting.is_real else None
    return found if binary is None else found | await _measured(setting, "http2.", binary)


async def _measured(setting: Setting, prefix: str, binary: Path | None) -> Samples:
    few, many = setting.scale.objects
    found: Samples = {}
    kib: dict[tuple[str, int], list[float]] = {}
    for count in (few, many):
        async with _address(setting, count, binary) as address:
            for _ in range(setting.scale.rounds):
                for way in WAYS:
                    arguments = (way, SECOND_KIND[prefix])
                    async with running(
                        setting.directory, "bench.objects_process", address, count, *arguments, objects=1
                    ) as reader:
                        figures = await _read(reader)
                    kib.setdefault((way, count), []).append(figures["rss_mib"] * 1024)
                    if count == many:
                        for name, value in figures.items():
                            found.setdefault(f"objects.{prefix}{way}.{name}", []).append(value)
    for way in WAYS:
        pairs = zip(kib[way, few], kib[way, many], strict=True)
        found[f"objects.{prefix}{way}.kib_per_scope"] = [(high - low) / (many - few) / _KINDS for low, high in pairs]
    for name in ("cpu_s", "rss_mib", "kib_per_scope"):
        values = zip(*(found[f"objects.{prefix}{way}.{name}"] for way in WAYS), strict=True)
        found[f"objects.{prefix}{name}_ratio"] = [ours / theirs for ours, theirs in values]
    return found


async def _read(reader: Operator) -> dict[str, float]:
    """Return the figures of a process once it has read all clusters."""
    seconds = await reader.working()
    cpu_s = reader.cpu_s
    return {"seconds": seconds, "cpu_s": cpu_s, "rss_mib": await reader.settled_kib() / 1024}


@asynccontextmanager
async def _address(setting: Setting, count: int, binary: Path | None) -> AsyncIterator[str]:
    """Run a daemon with control planes of a sandbox, or of the API server in Go; yield its address."""
    if setting.is_real:
        async with setting.milo(count) as milo:
            assert isinstance(milo, RealMilo)
            if not milo.has_projects:
                raise SystemExit("only Milo's own API server has projects' control planes: set MILO_APISERVER")
            config = setting.directory / "objects.yaml"
            certificate, key = milo.authority
            config.write_text(milo_cost.SETTINGS.format(certificate=certificate, key=key))
            async with running_daemon(milo.access.kubeconfig, setting.directory, config=config) as found:
                yield found.address
        return
    if binary is None:
        async with control_planes(setting, count) as sandbox:
            yield sandbox.address
        return
    minted = setting.directory / "objects-minted"
    minted.write_text("")
    source = rotation.SOURCE.format(python=sys.executable, minted=minted, life_s=LIFE_S)
    async with go.place(setting, binary, count, objects=OBJECTS) as place:
        daemon = place.daemon(source)
        try:
            await daemon.listens()
            yield daemon.address
        finally:
            await daemon.end()
