"""A shard group on two real API servers: steps that disturb it, and figures of the writes of its operators.

Projects are in Milo's API server; Leases, and the objects that the operators write, in a kube-apiserver. A step ends
when the expected members are settled, and each project was written to afterwards.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from bench import projects
from bench.access import Access
from bench.milo import RealMilo
from tests.end_to_end.real.bearers import bearer_of
from tests.end_to_end.real.programs import Programs
from tests.end_to_end.real.rights import shipped_role_of_tokens
from tests.end_to_end.real.servers import MiloApi
from tests.end_to_end.real.sharding.lease_audit import AuditedApi
from tests.end_to_end.real.sharding.operator import CONFIG_MAPS, LABEL
from tests.end_to_end.real.sharding.pods import TOKENS, Pod
from tests.end_to_end.real.sharding.write_history import HandOver, WriteHistory, quantile

MEMBERS = "shard-members"
_ROLE = Path(__file__).parents[4] / "deploy" / "components" / "sharding" / "role.yaml"
_RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
SERVICE_ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"
_STEP_S = 300.0
_LOOK_EVERY_S = 0.25


class Moved(msgspec.Struct, frozen=True):
    """The hand-overs of a step."""

    hand_overs: list[HandOver]

    def gap_s(self, share: float) -> float:
        """Return the time between the writes of two engagements, at this quantile."""
        return quantile([hand_over.gap_s for hand_over in self.hand_overs], share)

    @property
    def projects(self) -> int:
        """The number of projects that moved to another member."""
        return len({hand_over.project for hand_over in self.hand_overs if hand_over.former != hand_over.next})


class ShardingRun:
    def __init__(
        self, directory: Path, milo: MiloApi, infrastructure: AuditedApi, *, interval_s: float, fenced: bool = False
    ) -> None:
        """`interval_s` is the time between writes to one project. `fenced`: credentials are revoked before projects
        move.
        """
        self._directory = directory
        self._milo = milo
        self._infrastructure = infrastructure
        self._interval_s = interval_s
        self._fenced = fenced
        self._count = 0
        self._pods: dict[str, Pod] = {}
        self.history = WriteHistory()

    # Pods

    async def start(self, *numbers: int) -> None:
        for number in numbers:
            name = f"operator-{number}"
            if name not in self._pods:
                self._pods[name] = Pod(
                    name,
                    self._directory,
                    projects=self._milo.kubeconfig,
                    leases=self._infrastructure.kubeconfig_as(name, MEMBERS),
                    objects=self._infrastructure.kubeconfig,
                    interval_s=self._interval_s,
                    fenced=self._fenced,
                )
            await self._pods[name].start()

    def pod(self, number: int) -> Pod:
        return self._pods[f"operator-{number}"]

    async def terminate(self, *numbers: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in numbers:
                tasks.create_task(self.pod(number).terminate())

    @property
    def conflicts(self) -> int:
        return sum(pod.conflicts for pod in self._pods.values())

    # Objects

    async def populate(self, count: int) -> None:
        """Create projects until there are `count`."""
        authority = self._milo.authority
        milo = RealMilo(Access.of(self._milo.kubeconfig), (authority.file, authority.key_file()))
        await milo.populate(range(self._count, count))
        self._count = count

    @property
    def projects(self) -> list[str]:
        return [projects.name(index) for index in range(self._count)]

    # Steps

    @asynccontextmanager
    async def step(self, members: Iterable[int]) -> AsyncIterator[list[Moved]]:
        """Wait after a disturbance until these members share the projects; the yielded list then has the moves."""
        since, moved = time.monotonic(), list[Moved]()
        yield moved
        await self.settled(members)
        moved.append(Moved(list(self.history.hand_overs(since))))

    async def settled(self, members: Iterable[int]) -> None:
        names = {f"operator-{number}" for number in members}
        async with asyncio.timeout(_STEP_S):
            while not await self._agree(names):  # noqa: ASYNC110 - polled
                await asyncio.sleep(_LOOK_EVERY_S)
            since = time.monotonic()
            while not self._are_written(names, since):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _agree(self, names: set[str]) -> bool:
        for name in names:
            found = await self._pods[name].sharding()
            if found is None or not found.settled or found.valid_for is None:
                return False
            if {member.name for member in found.members if member.in_view} != names:
                return False
        return True

    def _are_written(self, names: set[str], since: float) -> bool:
        tenures = [self.history.last(project) for project in self.projects]
        return all(tenure is not None and tenure.ended_at > since and tenure.member in names for tenure in tenures)

    def writer(self, project: str) -> str | None:
        """Return the member that wrote to a project last."""
        last = self.history.last(project)
        return None if last is None else last.member

    def share(self, number: int) -> int:
        """Return how many projects a member wrote to last."""
        return sum(self.writer(project) == f"operator-{number}" for project in self.projects)

    async def fenced(self, members: Iterable[int]) -> None:
        """Wait until these members own nothing."""
        async with asyncio.timeout(_STEP_S):
            for number in members:
                while await self._owns(number):  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_EVERY_S)

    async def _owns(self, number: int) -> bool:
        found = await self.pod(number).sharding()
        return found is None or found.valid_for is not None

    async def lease_requests(self, members: Iterable[int], for_s: float) -> float:
        """Observe a group in which nothing changes; return the most Lease requests of a member, as a mean for 5 s."""
        began = time.time()
        await asyncio.sleep(for_s)
        counts = self._infrastructure.lease_requests(began, began + for_s)
        assert counts.keys() == {f"operator-{number}" for number in members}, counts
        return max(counts.values()) / for_s * 5

    async def stop_etcd(self) -> None:
        await self._infrastructure.etcd.stop()

    async def start_etcd(self) -> None:
        await self._infrastructure.etcd.start()

    # Setup

    async def _grant(self) -> None:
        """Bind the shipped roles to the members."""
        subject = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": MEMBERS}
        async with self._infrastructure.api() as api:
            await api.call("POST", SERVICE_ACCOUNTS, {"metadata": {"name": TOKENS["service_account"]}})
            leases, _ = yaml.safe_load_all(_ROLE.read_text())
            for role in (leases, shipped_role_of_tokens()):
                name = role["metadata"]["name"]
                reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
                binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
                await api.call("POST", f"{_RBAC}/roles", role)
                await api.call("POST", f"{_RBAC}/rolebindings", binding)

    async def follow_bearer(self, token: str) -> AsyncIterator[tuple[float, bool]]:
        """Yield times, and whether the API server accepts the token then."""
        while True:
            began = time.monotonic()
            yield began, await bearer_of(self._infrastructure, token) is not None
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _follow_writes(self) -> None:
        """Follow each version of each object, without a gap: a watch that cannot be resumed fails the run."""
        async with self._infrastructure.api() as api:
            selector = f"{CONFIG_MAPS}?labelSelector={LABEL}"
            version = (await api.call("GET", selector))["metadata"]["resourceVersion"]
            while True:
                with suppress(aiohttp.ClientError):
                    async with api.stream(f"{selector}&watch=1&resourceVersion={version}") as body:
                        while line := await body.readline():
                            event = json.loads(line)
                            if event["type"] not in ("ADDED", "MODIFIED"):
                                raise AssertionError(f"the watch of the writes has a gap: {event}")
                            self.history.apply(event["object"], time.monotonic())
                            version = event["object"]["metadata"]["resourceVersion"]
                await asyncio.sleep(_LOOK_EVERY_S)

    async def close(self) -> None:
        for pod in self._pods.values():
            await pod.close()

    @property
    def last_words(self) -> str:
        return "\n".join(f"{name}:\n{pod.last_words}" for name, pod in self._pods.items())


@asynccontextmanager
async def sharding_run(programs: Programs, directory: Path, **options: Any) -> AsyncIterator[ShardingRun]:
    """Run a shard group; `options` are those of `ShardingRun`."""
    milo, infrastructure = (
        MiloApi(programs, directory / "milo", proxied=False),
        AuditedApi(programs, directory / "leases"),
    )
    run = ShardingRun(directory, milo, infrastructure, **options)
    following: asyncio.Task[None] | None = None
    try:
        await asyncio.gather(milo.start(), infrastructure.start())
        await run._grant()
        following = asyncio.create_task(run._follow_writes())
        yield run
        if following.done():
            following.result()
    except BaseException as error:
        error.add_note(run.last_words)
        raise
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
        await run.close()
        await milo.close()
        await infrastructure.close()
