"""Milo's controller-manager with its own provider, beside the same program with the provider for the daemon.

The programs are not published; environment variables contain their paths: `MILO_APISERVER`, `MILO_CONTROLLER_MANAGER`
and `MILO_CONTROLLER_MANAGER_MOVED`, which follows the daemon. Each runs on servers of its own, on which projects are
created until it works in all of them: once without the two controllers that watch every kind without the provider, and
once with all controllers. In groups, two and four replicas run, each beside a daemon of a shard group; one replica is
killed and another one added. A group of one is measured for comparison with the sums of the groups. The program's
own leader election, of one replica for all work, is disabled: the second program elects a leader only for work that
must run once.

Without these programs, an operator of that shape is measured, which caches a dozen kinds in each project: with the
provider for the daemon, and with a provider that makes the same calls as Milo's.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from shutil import rmtree
from signal import SIGKILL
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import aiohttp
import yaml

from bench import peers, projects
from bench.access import PROJECTS, Access, call
from bench.daemon import Daemon
from bench.measures import go
from bench.measures.quota import CLAIMS, LIMIT, Quota, consumers
from bench.setting import Samples, Setting
from milo_discovery import DiscoveryClient, TimedOut, Unavailable

if TYPE_CHECKING:
    from tests.end_to_end.real.controller_manager import ControllerManager
    from tests.end_to_end.real.programs import Programs
    from tests.end_to_end.real.servers import InfrastructureApi, MiloApi

MOVED = "MILO_CONTROLLER_MANAGER_MOVED"
"""The environment variable with the path of the program that follows the daemon."""
KINDS = 12
_PROVIDER_ONLY = ("--controllers=*,-garbage-collector-controller,-namespace-controller",)
_PROVIDER_WATCHES, _ALL_WATCHES = 1, 2
"""Watches of `_QUOTA` in each project: the provider's, and with all controllers also the garbage collector's."""
_GROUPS = (1, 2, 4)
_QUOTA = 'resource="resourceclaims"'
"""A kind that the controller-manager caches in each project through its provider, and once in the core API."""
_WRITERS = 16
_LOOK_EVERY_S = 2.0
_LIST_EVERY_S = 1.0
_STEADY_S = 20.0
_METRICS_WITHIN_S = 120.0
_LONGEST_S = 1800.0
_REST_S = 20.0
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LONG = "apiserver_longrunning_requests"
_CPU = "process_cpu_seconds_total"
Figures = dict[str, float]


async def measure(setting: Setting) -> Samples:
    own, moved = (os.environ.get(name) for name in ("MILO_CONTROLLER_MANAGER", MOVED))
    if own is None or moved is None:
        return await _operator(setting)
    found, count = await _programs(), setting.scale.milo_projects
    figures: Figures = {}
    parts = (("provider", _PROVIDER_WATCHES, _PROVIDER_ONLY), ("whole", _ALL_WATCHES, ()))
    for part, of_project, arguments in parts:
        for whose, program in (("own", own), ("ours", moved)):
            async with _installation(found, program, of_project, arguments) as milo:
                await milo.add(follows_daemon=whose == "ours")
                figures |= {f"milo.{part}.{whose}.{key}": value for key, value in (await milo.filled(count)).items()}
    return {key: [value] for key, value in figures.items()}


async def measure_groups(setting: Setting) -> Samples:
    """Measure groups of controller-managers that follow daemons and share the projects."""
    moved = os.environ.get(MOVED)
    if moved is None:
        return {}
    found, count = await _programs(), setting.scale.milo_projects
    figures: Figures = {}
    for members in _GROUPS:
        async with _installation(found, moved, _ALL_WATCHES) as milo:
            for _ in range(members):
                await milo.add(follows_daemon=True, shares=True)
            async with milo.step("start", count) as group:
                group.update(await milo.filled(count) | await milo.totals())
            group.update(await milo.claimed(count))
            if members > 1:
                group.update(await milo.moved(count))
            figures |= {f"milo_groups.{members}.{key}": value for key, value in group.items()}
    return {key: [value] for key, value in figures.items()}


async def _programs() -> "Programs":
    # Imported only here, since these modules build programs in Go.
    from tests.end_to_end.real.builds import say_to_stderr  # noqa: PLC0415
    from tests.end_to_end.real.programs import programs  # noqa: PLC0415

    return await asyncio.to_thread(programs, say_to_stderr)


class _Member:
    """A controller-manager, and the daemon beside it if it follows one."""

    def __init__(self, manager: "ControllerManager", daemon: Daemon | None) -> None:
        self.manager, self.daemon = manager, daemon

    async def share(self) -> list[str]:
        """Return the projects that the member's daemon engages; an empty list until it has a complete view."""
        assert self.daemon is not None
        async with DiscoveryClient(self.daemon.address) as client:
            try:
                return [cluster.name for cluster in await client.list()]
            except (Unavailable, TimedOut):
                return []

    async def end(self) -> None:
        await self.manager.end()
        if self.daemon is not None:
            self.daemon.signal(SIGKILL)
            await self.daemon.end()


class _Installation:
    """A Milo API server without projects, and controller-managers."""

    def __init__(
        self,
        argv: tuple[str, ...],
        of_project: int,
        core: "MiloApi",
        infrastructure: "InfrastructureApi",
        directory: Path,
    ) -> None:
        self._argv, self._core, self._infrastructure, self._directory = argv, core, infrastructure, directory
        self._access = Access.of(core.kubeconfig)
        self._added = 0
        self._of_member, self._of_project = 1.0, of_project
        """Watches of `_QUOTA` that a member has without projects, and for each project."""
        self.members: list[_Member] = []

    async def add(self, *, follows_daemon: bool, shares: bool = False) -> None:
        """Start another replica."""
        from tests.end_to_end.real.controller_manager import ControllerManager  # noqa: PLC0415 - see `measure`

        self._added += 1
        directory = self._directory / f"{self._added}"
        directory.mkdir()
        daemon, environ = None, {}
        if follows_daemon:
            config = directory / "daemon.yaml"
            own = {"group": "milo", "member": f"member-{self._added}", "namespace": "default"}
            group = {"sharding": {**own, "kubeconfig": str(self._infrastructure.kubeconfig)}} if shares else {}
            config.write_text(yaml.safe_dump(group))
            daemon = Daemon(self._core.kubeconfig, directory, config=config)
            await daemon.listens()
            environ["MILO_DISCOVERY_ADDRESS"] = daemon.address
        manager = ControllerManager(self._argv, self._core, self._infrastructure, directory, environ=environ)
        self.members.append(_Member(manager, daemon))
        await manager.start()

    async def filled(self, count: int) -> Figures:
        """Create projects; once the program works in all of them, return the maximum of each figure of the members."""
        before, own = await self._watches(), await self._watches(_QUOTA)
        self._of_member = own / len(self.members)
        began = time.perf_counter()
        creating = asyncio.create_task(_create(self._access, range(count)))
        figures = {"seconds": await self._complete(count) - began}
        await creating
        spent = await self._of_managers()
        await asyncio.sleep(_REST_S)
        members, api = await self._of_managers(), await _metrics(self._access, "/metrics")
        cpu = [_sum(now, _CPU) - _sum(then, _CPU) for now, then in zip(members, spent, strict=True)]
        figures |= {
            "goroutines": max(_sum(metrics, "go_goroutines") for metrics in members),
            "stacks_mib": max(_mib(metrics, "go_memstats_stack_inuse_bytes") for metrics in members),
            "heap_mib": max(_mib(metrics, "go_memstats_heap_inuse_bytes") for metrics in members),
            "rss_mib": max(_mib(metrics, "process_resident_memory_bytes") for metrics in members),
            "cpu_at_rest": max(cpu) / _REST_S,
            "api.watches": await self._watches() - before,
            "api.goroutines": _sum(api, "go_goroutines"),
            "api.rss_mib": _mib(api, "process_resident_memory_bytes"),
        }
        daemons = [member.daemon for member in self.members if member.daemon is not None]
        if daemons:
            figures["daemon.rss_mib"] = max(daemon.rss_mib for daemon in daemons)
        return figures

    async def totals(self) -> Figures:
        members = await self._of_managers()
        return {
            "total.goroutines": sum(_sum(metrics, "go_goroutines") for metrics in members),
            "total.stacks_mib": sum(_mib(metrics, "go_memstats_stack_inuse_bytes") for metrics in members),
        }

    async def claimed(self, count: int) -> Figures:
        """Claim more quota than is granted, in the core API and in projects."""
        quota = Quota(self._access, "running", consumers(count))
        await quota.grant()
        await quota.claim(range(CLAIMS))
        return await quota.decided()

    @asynccontextmanager
    async def step(self, step: str, count: int) -> AsyncIterator[Figures]:
        """Yield figures; at the end, add the shares, and the maximum number of projects with several members.

        Each daemon's projects are listed every second, so that two members of a moving project are noticed.
        """
        figures: Figures = {}
        lists, with_several = 0, 0
        restarts = self.restarts()

        async def watch_owners() -> None:
            nonlocal lists, with_several
            while True:
                owners = await self._owners()
                lists, with_several = lists + 1, max(with_several, sum(len(members) > 1 for members in owners.values()))
                await asyncio.sleep(_LIST_EVERY_S)

        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch_owners())
            yield figures
            watching.cancel()
        owners = await self._owners()
        shares = [sum(member in members for members in owners.values()) for member in self.members]
        of_members = self._of_member * len(self.members)
        figures |= {
            f"{step}.largest_share": max(shares),
            f"{step}.smallest_share": min(shares),
            f"{step}.without_member": count - len(owners),
            f"{step}.with_several": max(with_several, sum(len(members) > 1 for members in owners.values())),
            f"{step}.lists": lists + 1,
            f"{step}.restarts": self.restarts() - restarts,
            f"{step}.quota_watches": await self._watches(_QUOTA) - of_members,
        }

    async def moved(self, count: int) -> Figures:
        """Kill the leader, and then start another replica; return how many projects moved, and how long it took.

        A project is created after the kill. It becomes ready once another replica has taken over what must run once.
        Half of the limit is claimed before the kill, and the other claims are created after it.
        """
        before = await self._owners()
        quota = Quota(self._access, "failover", consumers(count))
        await quota.grant()
        killed = self.members.pop(0)
        all_of = count + 1
        async with self.step("failover", all_of) as failover:
            await quota.claim(range(LIMIT // 2))
            began = time.perf_counter()
            await killed.end()
            await _create(self._access, range(count, all_of))
            await quota.claim(range(LIMIT // 2, CLAIMS))
            deciding = asyncio.create_task(quota.decided())
            failover["failover.seconds"] = await self._complete(all_of) - began
            failover.update({f"failover.{key}": value for key, value in (await deciding).items()})
        between = await self._owners()
        moved = [project for project, owners in before.items() if between.get(project) != owners]
        failover["failover.moved"] = len(moved)
        failover["failover.moved_without_need"] = sum(before[project] != [killed] for project in moved)
        async with self.step("scale_out", all_of) as scale_out:
            began = time.perf_counter()
            await self.add(follows_daemon=True, shares=True)
            scale_out["scale_out.seconds"] = await self._complete(all_of) - began
        after = await self._owners()
        moved = [project for project, owners in after.items() if between.get(project) != owners]
        scale_out["scale_out.moved"] = len(moved)
        scale_out["scale_out.moved_without_need"] = sum(after[project] != [self.members[-1]] for project in moved)
        return failover | scale_out

    async def _owners(self) -> dict[str, list[_Member]]:
        """Return the members that engage each project."""
        members = list(self.members)
        owners: dict[str, list[_Member]] = {}
        for member, share in zip(members, await asyncio.gather(*(replica.share() for replica in members)), strict=True):
            for project in share:
                owners.setdefault(project, []).append(member)
        return owners

    def restarts(self) -> int:
        return sum(member.manager.starts - 1 for member in self.members)

    async def end(self) -> None:
        for member in self.members:
            await member.end()

    async def _of_managers(self) -> list["Metrics"]:
        return [await _metrics(None, f"{member.manager.url}/metrics") for member in self.members]

    async def _watches(self, label: str = 'verb="WATCH"') -> float:
        return _sum(await _metrics(self._access, "/metrics"), _LONG, label)

    async def _complete(self, count: int) -> float:
        """Wait until the watches of all projects are open; return when the last watch was opened."""
        known, of_quota, changed_at = -1.0, 0.0, time.perf_counter()
        all_open = self._of_member * len(self.members) + self._of_project * count
        try:
            async with asyncio.timeout(_LONGEST_S):
                while True:
                    found = await _metrics(self._access, "/metrics")
                    now, of_quota = _sum(found, _LONG, 'verb="WATCH"'), _sum(found, _LONG, _QUOTA)
                    if now != known:
                        known, changed_at = now, time.perf_counter()
                    elif of_quota >= all_open and time.perf_counter() - changed_at > _STEADY_S:
                        return changed_at
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError as error:
            error.add_note(f"{of_quota:g} of {all_open:g} watches of {_QUOTA} were open when they were last counted")
            raise


@asynccontextmanager
async def _installation(
    found: "Programs", program: str, of_project: int, arguments: Sequence[str] = ()
) -> AsyncIterator[_Installation]:
    from tests.end_to_end.real.builds import say_to_stderr  # noqa: PLC0415 - see `measure`
    from tests.end_to_end.real.servers import InfrastructureApi, MiloApi  # noqa: PLC0415 - see `measure`

    directory = Path(mkdtemp(prefix="milo-"))  # the path of a socket has 107 characters at most
    is_sound = False
    try:
        async with AsyncExitStack() as stack:
            core = MiloApi(found, directory / "core", proxied=False)
            infrastructure = InfrastructureApi(found, directory / "infrastructure", proxied=False)
            for server in (core, infrastructure):
                stack.push_async_callback(server.close)
                await server.start()
            argv = (program, *found.controllers[1:], *arguments)
            milo = _Installation(argv, of_project, core, infrastructure, directory)
            stack.push_async_callback(milo.end)
            yield milo
            is_sound = milo.restarts() == 0
    finally:
        if is_sound:
            rmtree(directory)
        else:
            say_to_stderr(f"a program was restarted or the measurement failed: logs are in {directory}")


async def _create(access: Access, of: range) -> None:
    """Create projects, which the controller-manager makes ready."""
    indices = iter(of)

    async def work() -> None:
        for index in indices:
            project = {
                "apiVersion": "resourcemanager.miloapis.com/v1alpha1",
                "kind": "Project",
                "metadata": {"name": projects.name(index)},
                "spec": {"ownerRef": {"kind": "Organization", "name": "bench"}},
            }
            await call(session, "POST", PROJECTS, project)

    async with access.session() as session, asyncio.TaskGroup() as tasks:
        for _ in range(_WRITERS):
            tasks.create_task(work())


async def _operator(setting: Setting) -> Samples:
    binary = peers.operator() if setting.scale.with_go else None
    if binary is None:
        return {}
    samples: Samples = {}
    for whose in ("own", "ours"):
        async with go.place(setting, binary, setting.scale.milo_projects, objects=1) as place:
            running = place.ours(KINDS) if whose == "ours" else place.peer(KINDS)
            async with running as operator:
                figures = {"seconds": await operator.working()}
                at, server = await operator.status(), await place.server.status()
                spent = operator.cpu_s
                await asyncio.sleep(min(_REST_S, setting.scale.idle_s))
                figures |= {
                    "goroutines": at["goroutines"],
                    "stacks_mib": at["stack_bytes"] / 2**20,
                    "heap_mib": at["heap_bytes"] / 2**20,
                    "rss_mib": operator.rss_mib,
                    "cpu_at_rest": (operator.cpu_s - spent) / min(_REST_S, setting.scale.idle_s),
                    "api.watches": server["watches"],
                    "api.goroutines": server["goroutines"],
                    "api.rss_mib": place.server.rss_mib,
                }
        samples |= {f"milo.operator.{whose}.{key}": [value] for key, value in figures.items()}
    return samples


Metrics = Mapping[tuple[str, str], float]
"""Samples by name and labels."""


async def _metrics(access: Access | None, url: str) -> Metrics:
    session = access.session() if access else aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))
    async with session, asyncio.timeout(_METRICS_WITHIN_S):
        while True:
            with suppress(aiohttp.ClientPayloadError):  # a busy server aborts a response, here or with an error status
                async with session.get(url) as response:
                    if response.status != HTTPStatus.GATEWAY_TIMEOUT:
                        response.raise_for_status()
                        text = await response.text()
                        return {(name, labels): float(value) for name, labels, value in _SAMPLE.findall(text)}
            await asyncio.sleep(_LOOK_EVERY_S)


def _sum(found: Metrics, metric: str, label: str = "") -> float:
    return sum(value for (name, labels), value in found.items() if name == metric and label in labels)


def _mib(found: Metrics, metric: str) -> float:
    return _sum(found, metric) / 2**20
