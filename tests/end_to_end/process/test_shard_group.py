"""Attacks on a shard group of daemons, as processes, with two sources.

Members are killed, and a source is unavailable or has the list of another server.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from milo_discovery import DiscoveryClient, EventType, Watch
from milo_discovery._ownership import boottime
from milo_discoveryd.server.calls.revision import parse
from milo_discoveryd.state_file.state_file import stored_fleets
from tests.end_to_end.matrix.cell import create_hub, pod, record, sharding
from tests.end_to_end.matrix.validator import Validator
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.project_server import Projects, ProjectServer
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(400)]

MEMBERS = 3
NAMES = [f"p-{number:02}" for number in range(24)]
SETTLED_WITHIN_S = 120.0
RESTART_S = 16.0
"""How long the ownership of a subscriber must last when its daemon is killed, so that the next process renews it."""
VERIFY_AFTER_S = 4.0
ACKNOWLEDGED_S = 40.0
"""The time in which a restarted member acknowledges a view: it waits for 33 s."""
_PAGE = " ".join((Path(__file__).parents[3] / "docs" / "sharding.md").read_text().split())
[_PROMISED_S] = re.findall(r"member that was killed have no owner for up to (\d+) seconds", _PAGE)
WITHOUT_OWNER_S = float(_PROMISED_S)
"""The maximum time for which clusters of a killed member have no owner, according to docs/sharding.md."""


class Group:
    """Daemons with the sources `a` and `b`, each with a subscriber, and a validator of the events of all of them."""

    def __init__(
        self,
        workspace: Workspace,
        a: ProjectServer,
        b: ProjectServer,
        *,
        proxies: Mapping[int, TcpProxy] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        """`proxies`: those through which members, by their number, reach the server of `a`."""
        self.servers = {"a": a, "b": b}
        self._proxies = proxies
        self._settings = settings
        self._directory, self._hub = workspace.directory, workspace.directory / "hub"
        create_hub(workspace.sandbox, self._hub)
        self.validator = Validator(is_shared=True)
        self.told: list[str] = []
        """The engagements and disengagements that the first member's subscriber received."""
        self._watch: Watch | None = None
        """The watch of the first member's subscriber."""
        self.daemons = [self._daemon(number) for number in range(MEMBERS)]

    def _daemon(self, number: int) -> DaemonProcess:
        state = self._directory / f"state-{number}"
        state.mkdir(mode=0o700)
        config = {
            "sources": [server.source(name, self._directory) for name, server in self.servers.items()],
            "plain_loopback": True,
            "listen": [self._address(number)],
            "http_listen": "off",
            "connectivity": {"interval": "off"},
            "watch": {"streaming_lists": "off"},
            "state_directory": str(state),
            "sharding": sharding(self._hub),
            **self._settings,
        }
        if number in self._proxies:
            direct, port = self._directory / "a.kubeconfig", self.servers["a"].url.rpartition(":")[2]
            proxied = direct.with_name(f"a-{number}.kubeconfig")
            proxied.write_text(direct.read_text().replace(f":{port}", f":{self._proxies[number].port}"))
            self._proxies[number].open(int(port))
            config["sources"][0]["discovery_kubeconfig"] = str(proxied)
        file = self._directory / f"{number}.yaml"
        file.write_text(yaml.safe_dump(config))
        return DaemonProcess(self._address(number), "--config", str(file), environ=pod(number), is_forked=True)

    def _address(self, number: int) -> str:
        return f"unix://{self._directory}/{number}.sock"

    def put(self, source: str, name: str) -> None:
        self.validator.created(f"{source}#{name}")
        self.servers[source].projects.put(name)

    def delete(self, source: str, name: str) -> None:
        self.validator.deleted(f"{source}#{name}")
        self.servers[source].projects.delete(name)

    async def follow(self, number: int) -> None:
        async with (
            DiscoveryClient(self._address(number)) as client,
            client.watch(accept_pending_sources=True) as watch,
        ):
            if number == 0:
                self._watch = watch
            async for event in watch:
                record(self.validator, f"subscriber-{number}", event)
                if number == 0 and event.type in (EventType.ENGAGED, EventType.DISENGAGED):
                    reason = event.reason.name if event.type is EventType.DISENGAGED else ""
                    self.told.append(f"{event.type.name} {event.cluster.name} {reason}")

    async def settled(self) -> None:
        """Wait until each cluster that exists has an owner."""
        await eventually(lambda: self.validator.breaches or self.validator.is_current, within_s=SETTLED_WITHIN_S)
        assert not self.validator.breaches, "; ".join(self.validator.breaches)

    async def told_of_one(self, source: str, name: str) -> None:
        """Create clusters, and wait until the first member's subscriber has received one of them, or until a breach;
        other members may own the rest."""
        names = {f"{name}-{number}" for number in range(12)}
        for cluster in names:
            self.put(source, cluster)
        await eventually(
            lambda: self.validator.breaches or any(f"{source}#{cluster}" in self.view for cluster in names),
            within_s=SETTLED_WITHIN_S,
        )

    async def kill_first(self, once: Callable[[], bool] = lambda: True) -> None:
        """Kill the first member once `once` holds and its subscriber's ownership outlasts a restart.

        A subscriber that loses its ownership begins as a new one, to which the daemon sends its state file.
        """
        await eventually(lambda: once() and self._outlasts_a_restart())
        await self.daemons[0].kill()

    def _outlasts_a_restart(self) -> bool:
        return self._watch is not None and self._watch._subscription.ownership.until - boottime() > RESTART_S

    @property
    def view(self) -> set[str]:
        """The clusters of the first member's subscriber."""
        return self.validator.views["subscriber-0"]

    @property
    def file(self) -> Path:
        """The state file of source `a` of the first member."""
        return self._directory / "state-0" / "fleet-a.state"

    def assert_engaged_only(self, *prefixes: str) -> None:
        """Assert that the first member's subscriber received only engagements of clusters with these prefixes."""
        expected = tuple(f"ENGAGED {prefix}" for prefix in prefixes)
        unexpected = [told for told in self.told if not told.startswith(expected)]
        assert not unexpected, f"also received {', '.join(unexpected)}"

    def are_stored(self) -> bool:
        """Return whether the first member's state file has the clusters of its subscriber."""
        content = self.file.read_bytes() if self.file.exists() else b""
        return all(name.removeprefix("a#").encode() in content for name in self.view if name.startswith("a#"))

    def has_stored_position(self) -> bool:
        """Return whether the first member's state file of `a` has the position of its subscriber's revision, or a later
        one of the same run."""
        position = None if self._watch is None else parse(self._watch.revision)
        fleet = dict(stored_fleets(self.file.parent)).get("a")
        if position is None or fleet is None:
            return False
        return fleet.positions.get(position.epoch, -1) >= position.revision

    async def start(self) -> None:
        for daemon in self.daemons:
            await daemon.start()

    @asynccontextmanager
    async def joining(self, number: int) -> AsyncIterator[set[str]]:
        """Run another member, and yield the clusters of its subscriber."""
        async with self._daemon(number) as daemon:
            await daemon.start()
            following = asyncio.create_task(self.follow(number))
            try:
                yield self.validator.views.setdefault(f"subscriber-{number}", set())
            finally:
                following.cancel()


@asynccontextmanager
async def group(workspace: Workspace, **settings: Any) -> AsyncIterator[Group]:
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(ProjectServer(Projects(of=of)).listening()) for of in ("a", "b")]
        made = Group(workspace, a, b, **settings)
        for name in NAMES:
            made.put("a", name)
        made.put("b", "other")
        for daemon in made.daemons:
            await stack.enter_async_context(daemon)
        await made.start()
        for number in range(MEMBERS):
            following = asyncio.create_task(made.follow(number))
            stack.callback(following.cancel)
        await made.settled()
        yield made


async def test_clusters_of_a_killed_member_have_an_owner_within_the_documented_time(workspace: Workspace) -> None:
    async with group(workspace) as found:
        views = found.validator.views
        await eventually(lambda: all(len(views[f"subscriber-{number}"]) > 1 for number in range(MEMBERS)))
        lost = set(views["subscriber-0"])
        began = monotonic()
        await found.daemons[0].kill()
        found.put("b", "later")  # whose owner may be the killed member
        others = [views[f"subscriber-{number}"] for number in range(1, MEMBERS)]
        await eventually(
            lambda: found.validator.breaches or lost | {"b#later"} <= set().union(*others),
            within_s=WITHOUT_OWNER_S + 30,
        )
        took = monotonic() - began
        await found.settled()
    assert 30.0 < took < WITHOUT_OWNER_S, f"{len(lost)} clusters had no owner for {took:.1f} s, want 30 to 51 s"


async def test_second_restart_of_a_member_during_an_outage_engages_no_deleted_cluster(workspace: Workspace) -> None:
    """The member's state file lacks the changes before it was killed, and the source does not answer after two
    restarts."""
    async with group(workspace) as found:
        member, a = found.daemons[0], found.servers["a"]
        await eventually(found.are_stored)
        outdated = found.file.read_bytes()
        stored = [name for name in NAMES if f"a#{name}" in found.view]
        await found.told_of_one("a", "new")
        await found.settled()
        # As many clusters are deleted as created: a state file with fewer clusters than the subscriber has is not sent.
        created = [name for name in found.view if name.startswith("a#new-")]
        recreated, *gone = stored[: 1 + len(created)]
        assert len(gone) == len(created), f"member 0 owns {len(stored)} old and {len(created)} new clusters"
        for name in (*gone, recreated):
            found.delete("a", name)
        await found.settled()
        found.put("a", recreated)
        await found.settled()
        found.told.clear()
        await found.kill_first()
        found.file.write_bytes(outdated)
        await a.stop()
        for run in range(2):
            await member.start()
            await found.told_of_one("b", f"run-{run}")
            found.assert_engaged_only("b#run-")
            await found.settled()
            await found.kill_first(found.has_stored_position)
        await member.start()
        await a.start()
        await found.told_of_one("a", "later")
        await found.settled()
        found.assert_engaged_only("b#run-", "a#later-")


async def test_restarted_member_that_cannot_list_a_source_releases_none_of_its_clusters(workspace: Workspace) -> None:
    """Without a state file, it does not know the clusters that its subscriber keeps, and a view takes some of them."""
    async with TcpProxy() as proxy, group(workspace, proxies={0: proxy}, state_directory=None) as found:
        await found.kill_first()
        await proxy.shut()
        kept = set(found.view)
        await found.daemons[0].start()
        async with found.joining(MEMBERS) as view:
            await eventually(lambda: found.validator.breaches or view, within_s=SETTLED_WITHIN_S)
            await asyncio.sleep(ACKNOWLEDGED_S)
            assert not found.validator.breaches, "; ".join(found.validator.breaches)
            assert found.view == kept
            proxy.open()
            await eventually(
                lambda: found.validator.breaches or (found.view < kept and found.validator.is_current),
                within_s=SETTLED_WITHIN_S,
            )
            assert not found.validator.breaches, "; ".join(found.validator.breaches)


async def test_first_list_from_another_server_after_a_members_restart_disengages_nothing(workspace: Workspace) -> None:
    """Without a state file, only the subscriber's revision shows that the member had clusters before."""
    settings: dict[str, Any] = {"state_directory": None, "removals": {"verify_after": f"{VERIFY_AFTER_S:g}s"}}
    async with group(workspace, **settings) as found:
        a = found.servers["a"]
        found.told.clear()
        await found.kill_first()
        right, lists = a.projects, a.lists
        a.replace(Projects((f"foreign-{number}" for number in range(3)), version=5000, of="foreign"))
        await found.daemons[0].start()
        await eventually(lambda: a.lists >= lists + MEMBERS)  # the other members list again
        await asyncio.sleep(2.0)  # the server sends the list of another server
        a.replace(right)
        await asyncio.sleep(2.5 * VERIFY_AFTER_S)  # until the second list and the one after it
        await found.told_of_one("a", "later")
        await found.told_of_one("b", "later")
        await found.settled()
        found.assert_engaged_only("a#later-", "b#later-")
