"""Goroutines and memory that the daemon and a controller cost Milo's API server, according to its own metrics.

The daemon follows all projects, probes each control plane and serves a kubeconfig for each; then a controller in Python
follows two kinds in each of them; then both terminate.
"""

import asyncio
import re
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from bench.access import Access
from bench.daemon import daemon as running_daemon
from bench.milo import RealMilo
from bench.setting import Samples, Setting
from milo_controllers import Controllers, Request
from milo_discovery import Cluster, DiscoveryClient, Fleet

_KINDS = ("v1/configmaps", "v1/secrets")
_LOOK_EVERY_S = 5.0
_LONGEST_S = 180.0
_STEADY = 0.005
_LATER_S = 25.0
SETTINGS = """\
kubeconfigs:
  issuers:
    - name: bench
      type: client-certificate
      ca_certificate: {certificate}
      ca_key: {key}
      common_name: bench
      organizations: [system:masters]
"""
_HEAP, _STACKS = "go_memstats_heap_alloc_bytes", "go_memstats_stack_inuse_bytes"
_METRIC = re.compile(rf"^(go_goroutines|{_HEAP}|{_STACKS}) (\S+)$", re.MULTILINE)


async def measure(setting: Setting) -> Samples:
    if not setting.is_real:
        return {}
    count = setting.scale.cost_projects
    config = setting.directory / "milo-cost.yaml"
    async with setting.milo(count) as milo:
        assert isinstance(milo, RealMilo)
        certificate, key = milo.authority
        config.write_text(SETTINGS.format(certificate=certificate, key=key))
        before = await _steady(milo.access)
        async with (
            running_daemon(milo.access.kubeconfig, setting.directory, config=config, probed=True) as daemon,
            DiscoveryClient(daemon.address) as client,
        ):
            for cluster in await _engaged(client, count):
                await client.issue_kubeconfig(cluster.name)
            beside_daemon = await _steady(milo.access)
            controllers = Controllers(Fleet(client), registry=CollectorRegistry())
            for kind in _KINDS:
                controllers.reconcile(kind)(_nothing)
            async with controllers:
                while len(controllers.view.names()) < count:  # noqa: ASYNC110 - many informers
                    await asyncio.sleep(0.1)
                working = await _steady(milo.access)
        await asyncio.sleep(_LATER_S)
        later = await _cost(milo.access)
    informers = count * len(_KINDS)
    goroutines = working.goroutines - beside_daemon.goroutines
    return {
        "milo_cost.daemon.goroutines": [beside_daemon.goroutines - before.goroutines],
        "milo_cost.daemon.mib": [(beside_daemon.mib - before.mib)],
        "milo_cost.controller.goroutines_per_informer": [goroutines / informers],
        "milo_cost.controller.mib_per_informer": [(working.mib - beside_daemon.mib) / informers],
        "milo_cost.ended.goroutines_kept": [(later.goroutines - beside_daemon.goroutines) / goroutines],
    }


async def _engaged(client: DiscoveryClient, count: int) -> list[Cluster]:
    """Return the clusters once `count` of them are engaged."""
    found: dict[str, Cluster] = {}
    async for event in client.watch():
        found[event.cluster.name] = event.cluster
        if len(found) == count:
            break
    return [*found.values()]


class _Cost(NamedTuple):
    goroutines: float
    mib: float


async def _nothing(_: Request) -> None:
    pass


async def _steady(access: Access) -> _Cost:
    """Return the cost once the number of goroutines is steady."""
    found = await _cost(access)
    async with asyncio.timeout(_LONGEST_S):
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            before, found = found, await _cost(access)
            if abs(found.goroutines - before.goroutines) <= _STEADY * found.goroutines:
                return found


async def _cost(access: Access) -> _Cost:
    """Return the cost after a garbage collection. Resident memory is not used: it includes what earlier work freed."""
    async with access.session() as session:
        async with session.get("/debug/pprof/heap", params={"gc": "1"}) as profile:
            profile.raise_for_status()
        async with session.get("/metrics") as response:
            found = dict(_METRIC.findall(await response.text()))
    return _Cost(float(found["go_goroutines"]), (float(found[_HEAP]) + float(found[_STACKS])) / 2**20)
