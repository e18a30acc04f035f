"""Attacks on a daemon with two sources, as processes: restarts, bad first lists, and unavailable sources."""

import asyncio
import json
import re
import sys
import time
from asyncio.subprocess import create_subprocess_exec
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from copy import deepcopy
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery import DiscoveryClient, Event, EventType, SourceState
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.server.calls.revision import parse
from milo_discoveryd.state_file.state_file import stored_fleets
from milo_sandbox import Sandbox
from milo_sandbox.milo import PROJECT_UID_LABEL
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.project_server import Consumers, Projects, ProjectServer, ProviderServer
from tests.end_to_end.process.service_provider import ServiceProvider
from tests.end_to_end.process.state_writes import written
from tests.end_to_end.process.test_check import checked
from tests.support.eventually import eventually

CONCEPTS = Path(__file__).parents[3] / "docs" / "concepts.md"
NAMES = [f"p-{number:02}" for number in range(53)]
VERIFY_AFTER_S = 4.0


class Subscriber:
    """A subscriber that reconnects by itself, through a link to the daemon's socket that a test can remove."""

    def __init__(self, workspace: Workspace) -> None:
        self.view: set[str] = set()
        self.events: list[str] = []
        """Engagements and disengagements since a test last cleared the list."""
        self._socket = workspace.socket
        self._link = workspace.directory / "link.sock"
        self.address = f"unix://{self._link}"

    def connect(self) -> None:
        self._link.symlink_to(self._socket)

    def disconnect(self) -> None:
        """Make the next connections fail; the present one stays."""
        self._link.unlink()

    async def run(self) -> None:
        async with DiscoveryClient(self.address) as client, client.watch(accept_pending_sources=True) as watch:
            async for event in watch:
                self._take(event)

    def _take(self, event: Event) -> None:
        if event.type is EventType.ENGAGED:
            self.view.add(event.cluster.name)
        elif event.type is EventType.DISENGAGED:
            self.view.discard(event.cluster.name)
        else:
            return
        self.events.append(f"{event.type.name} {event.cluster.name}")


class Rig:
    """A daemon with the sources `a` and `b`, and a subscriber."""

    def __init__(self, workspace: Workspace, a: ProjectServer, b: ProjectServer, daemon: DaemonProcess) -> None:
        self.a, self.b, self.daemon = a, b, daemon
        self.state = workspace.directory / "state"
        self.subscriber = Subscriber(workspace)

    async def seen(self, *names: str) -> None:
        """Wait until the subscriber has these clusters."""
        await self.daemon.during(eventually(lambda: self.subscriber.view.issuperset(names)))

    async def stored(self, *words: str) -> None:
        """Wait until the state file of `a` contains these words."""

        def has_all() -> bool:
            with suppress(FileNotFoundError):
                content = (self.state / "fleet-a.state").read_bytes()
                return all(word.encode() in content for word in words)
            return False

        await self.daemon.during(eventually(has_all))


@asynccontextmanager
async def rig(
    workspace: Workspace, *, has_state: bool, a: ProjectServer | None = None, **settings: Any
) -> AsyncIterator[Rig]:
    """Yield a rig whose source `a` follows this server, by default one of Projects."""
    async with AsyncExitStack() as stack:
        a, b = a or ProjectServer(Projects(NAMES, of="a")), ProjectServer(Projects(["other"], of="b"))
        for server in (a, b):
            await stack.enter_async_context(server.listening())
        given = {
            "sources": [server.source(name, workspace.directory) for name, server in (("a", a), ("b", b))],
            "discovery_kubeconfig": None,
            "plain_loopback": True,
            "watch": {"streaming_lists": "off"},
            "removals": {"verify_after": f"{VERIFY_AFTER_S:g}s"},
            **({"state_directory": str(workspace.directory / "state")} if has_state else {}),
            **settings,
        }
        daemon = await stack.enter_async_context(workspace.daemon(**given))
        made = Rig(workspace, a, b, daemon)
        made.subscriber.connect()
        await daemon.start()
        following = asyncio.create_task(made.subscriber.run())
        stack.callback(following.cancel)
        await made.seen("b#other", *(f"a#{name}" for name in NAMES))
        yield made


def bad_first_list(kind: str, right: Projects) -> Projects:
    """Return the objects that the attacked server serves until two seconds after the restarted daemon's first list."""
    match kind:
        case "three others":
            return type(right)((f"foreign-{number}" for number in range(3)), version=5000, of="foreign")
        case "twenty others, older":
            return type(right)((f"foreign-{number}" for number in range(20)), version=10, of="foreign")
        case "other UIDs":
            return Projects([*right.objects], version=5000, of="restored")
        case "third":
            part = deepcopy(right)
            part.objects = dict([*part.objects.items()][::3])
            return part
        case "empty":
            return Projects(version=right.version)
    raise AssertionError(kind)


SHORT = ["three others", "twenty others, older", "third", "empty"]


@pytest.mark.parametrize(
    ("kind", "has_state"),
    [*((kind, has_state) for kind in SHORT for has_state in (False, True)), ("other UIDs", True)],
)
async def test_bad_first_list_of_one_of_two_sources_disengages_nothing(
    workspace: Workspace, kind: str, has_state: bool
) -> None:
    async with rig(workspace, has_state=has_state) as found:
        if has_state:
            await found.stored(*NAMES)
        await restart_with_bad_first_list(found, found.a, kind)
        found.a.projects.put("later")
        await found.seen("a#later")
        found.b.projects.put("later")
        await found.seen("b#later")
        assert found.subscriber.events == ["ENGAGED a#later", "ENGAGED b#later"]
        await source_is_streaming(workspace)


async def restart_with_bad_first_list(found: Rig, attacked: ProjectServer, kind: str) -> None:
    await found.daemon.kill()
    right, lists = attacked.projects, attacked.lists
    attacked.replace(bad_first_list(kind, right))
    found.subscriber.events.clear()
    await found.daemon.start()
    await found.daemon.during(eventually(lambda: attacked.lists > lists))
    await asyncio.sleep(2.0)  # the server sends the bad list
    right.version = max(right.version, attacked.projects.version if kind == "empty" else 0)
    attacked.replace(right)
    await asyncio.sleep(2.5 * VERIFY_AFTER_S)  # until the second list and the one after it


@pytest.mark.parametrize("start", ["running", "restarted", "restarted with a state file"])
@pytest.mark.parametrize(("counts", "verify_after_s"), [((3, 17, 43, 48, 53), 60.0), ((3, 48), 8.0)])
async def test_incomplete_growing_lists_disengage_nothing_before_removals_are_verified(
    workspace: Workspace, start: str, counts: Sequence[int], verify_after_s: float
) -> None:
    """A server that is loading its store: clusters that no list has are disengaged, after `removals.verify_after`."""
    has_state, removals = "state" in start, {"verify_after": f"{verify_after_s:g}s"}
    async with rig(workspace, has_state=has_state, removals=removals) as found:
        if has_state:
            await found.stored(*NAMES)
        if start != "running":
            await found.daemon.kill()
        found.subscriber.events.clear()
        right, began = found.a.projects, time.monotonic()
        for count in counts:
            lists, part = found.a.lists, deepcopy(right)
            part.objects = dict([*right.objects.items()][:count])
            part.version += count  # earlier versions have expired, so that the daemon lists again
            found.a.replace(part)
            if not found.daemon.is_running:
                await found.daemon.start()
            await listed_since(found, lists)
        ended = [f"DISENGAGED a#{name}" for name in NAMES[counts[-1] :]]
        if ended:
            await found.daemon.during(eventually(lambda: found.subscriber.events))
            assert time.monotonic() - began >= verify_after_s
        for server in (found.a, found.b):
            server.projects.put("later")
        await found.seen("a#later", "b#later")
        await found.daemon.during(eventually(lambda: len(found.subscriber.events) >= len(ended) + 2))
        assert sorted(found.subscriber.events) == [*ended, "ENGAGED a#later", "ENGAGED b#later"]


async def listed_since(found: Rig, lists: int) -> None:
    await found.daemon.during(eventually(lambda: found.a.lists > lists))


async def source_is_streaming(workspace: Workspace) -> None:
    """Check that the daemon follows its sources, and holds no list back for a subscriber."""
    async with workspace.client() as client:
        status = (await client.server_info()).source
        assert (status.state, status.reason) == (SourceState.STREAMING, ""), status.message


@pytest.mark.parametrize(("kind", "has_state"), [("three others", True), ("twenty others, older", False)])
@pytest.mark.parametrize("attacked", ["consumers", "projects"])
async def test_first_list_of_service_consumers_or_projects_from_another_server_disengages_nothing(
    workspace: Workspace, attacked: str, kind: str, has_state: bool
) -> None:
    provider = ProviderServer(Projects(NAMES, of="a"), Consumers(NAMES, of="a"))
    async with rig(workspace, has_state=has_state, a=provider) as found:
        if has_state:
            await found.stored(*NAMES)
        await restart_with_bad_first_list(found, provider.consumers if attacked == "consumers" else provider, kind)
        for server in (provider, provider.consumers, found.b):
            server.projects.put("later")
        await found.seen("a#later", "b#later")
        assert sorted(found.subscriber.events) == ["ENGAGED a#later", "ENGAGED b#later"]
        await source_is_streaming(workspace)


async def test_new_clusters_added_by_watch_after_an_empty_first_list_disengage_no_known_cluster(
    workspace: Workspace,
) -> None:
    async with rig(workspace, has_state=False) as found:
        await found.daemon.kill()
        found.subscriber.disconnect()
        right, empty = found.a.projects, Projects(version=found.a.projects.version + 1, of="a")
        found.a.replace(empty)
        found.subscriber.events.clear()
        lists = found.a.lists
        await found.daemon.start()
        await found.daemon.during(eventually(lambda: found.a.lists > lists))
        others = [f"other-{number}" for number in range(len(NAMES))]  # as many as the subscriber knows
        for name in others:
            empty.put(name)
        async with DiscoveryClient(f"unix://{workspace.socket}") as client, client.watch() as watch:
            await found.daemon.during(
                read_until(watch, lambda: {f"a#{name}" for name in others} <= set(watch.clusters))
            )
        found.subscriber.connect()
        await asyncio.sleep(VERIFY_AFTER_S / 4)
        for name, record in empty.objects.items():
            right.objects[name] = record
        right.version = empty.version
        found.a.replace(right)
        await found.seen(*(f"a#{name}" for name in others))
        assert [event for event in found.subscriber.events if event.startswith("DISENGAGED")] == []


async def read_until(watch: Any, holds: Callable[[], bool]) -> None:
    while not holds():
        await anext(watch)


@pytest.mark.parametrize("has_state", [False, True], ids=["no state file", "state file"])
async def test_list_of_lagging_api_server_replica_after_restart_disengages_nothing(
    workspace: Workspace, has_state: bool
) -> None:
    async with rig(workspace, has_state=has_state) as found:
        right = found.a.projects
        replica = deepcopy(right)
        new = [f"new-{number}" for number in range(8)]
        for name in new:
            right.put(name)
        await found.seen(*(f"a#{name}" for name in new))
        await found.daemon.kill()
        found.a.replace(replica)
        found.subscriber.events.clear()
        lists = found.a.lists
        await found.daemon.start()
        await found.daemon.during(eventually(lambda: found.a.lists > lists))
        await asyncio.sleep(2.0)  # the replica lags behind
        found.a.replace(right)
        right.put("later")
        await found.seen("a#later")
        assert found.subscriber.events == ["ENGAGED a#later"]


async def test_repeated_restarts_while_a_source_is_unavailable_engage_no_deleted_cluster(workspace: Workspace) -> None:
    """The state file lacks the changes before the daemon was killed, and the source is unavailable at each restart."""
    async with rig(workspace, has_state=True) as found:
        await found.stored(*NAMES)
        file = found.state / "fleet-a.state"
        outdated = file.read_bytes()
        right = found.a.projects
        for name in ("p-00", "p-01", "p-02"):
            right.delete(name)
        right.put("p-02")
        for name in ("new-0", "new-1"):
            right.put(name)
        await found.seen("a#new-0", "a#new-1")
        await found.daemon.during(
            eventually(lambda: not found.subscriber.view & {"a#p-00", "a#p-01"} and "a#p-02" in found.subscriber.view)
        )
        await found.daemon.kill()
        file.write_bytes(outdated)
        await found.a.stop()
        found.subscriber.events.clear()
        for run in range(3):
            # The second write has a position of this run, with which the revision of the next stream is compared.
            two_writes = asyncio.create_task(written(file, 2))
            await found.daemon.start()
            found.b.projects.put(f"run-{run}")
            await found.seen(f"b#run-{run}")
            await two_writes
            await found.daemon.kill()
        await found.daemon.start()
        await found.a.start()
        right.put("later")
        await found.seen("a#later")
        assert found.subscriber.events == [*(f"ENGAGED b#run-{run}" for run in range(3)), "ENGAGED a#later"]


@pytest.mark.parametrize("end", ["shutdown", "kill"])
async def test_restarted_daemon_sends_clusters_of_its_state_files_as_reset_snapshots(
    workspace: Workspace, end: str
) -> None:
    """Tests what docs/concepts.md says.

    A subscriber that has received what the state files lack gets heartbeats until the lists are complete.
    """
    assert "Its snapshot is marked `reset`" in " ".join(CONCEPTS.read_text().split())
    async with rig(workspace, has_state=True) as found:
        earlier, before = await snapshot(workspace), set(found.subscriber.view)
        await found.daemon.during(eventually(lambda: are_stored(found, earlier)))
        files = {path: path.read_bytes() for path in found.state.iterdir()}
        servers = found.a, found.b
        for server in servers:
            server.projects.put("late")
        await found.seen("a#late", "b#late")
        after, late = set(found.subscriber.view), await snapshot(workspace)
        if end == "kill":
            await found.daemon.kill()
            for path, content in files.items():
                path.write_bytes(content)
        else:
            assert await found.daemon.terminate() == 0
        for server in servers:
            await server.stop()
        found.subscriber.events.clear()
        await found.daemon.start()
        for revision in ["", earlier, *([late] if end == "shutdown" else [])]:
            async with workspace.stream(pb.WatchClustersRequest(resume_revision=revision)) as stream:
                batches = await stream.until_synced()
                assert batches[0].reset
                assert engaged_by(batches) == (before if end == "kill" else after)
                assert [source.state for source in batches[0].sources] == 2 * [pb.SourceStatus.STATE_STALE]
        resumed = pb.WatchClustersRequest(resume_revision=late, heartbeat_interval=Duration(seconds=1))
        async with workspace.stream(resumed) as stream:
            if end == "kill":
                for _ in range(2):
                    heartbeat = await stream.batch()
                    assert (heartbeat.synced, heartbeat.reset, [*heartbeat.events]) == (False, False, [])
            for server in servers:
                await server.start()
            batches = await stream.until_synced()
            assert next(batch for batch in batches if batch.events).reset
            assert engaged_by(batches) == after
        assert found.subscriber.events == []


async def snapshot(workspace: Workspace) -> str:
    """Return the revision of a subscriber that has received everything."""
    async with workspace.stream() as stream:
        return (await stream.until_synced())[-1].revision


def are_stored(found: Rig, revision: str) -> bool:
    """Return whether both state files have everything that a subscriber at this revision has received."""
    position, fleets = parse(revision), [fleet for _, fleet in stored_fleets(found.state)]
    assert position is not None
    return len(fleets) == 2 and all(position.is_contained_in(fleet.positions) for fleet in fleets)


def engaged_by(batches: Iterable[pb.WatchClustersResponse]) -> set[str]:
    return {event.cluster.name for batch in batches for event in batch.events}


async def test_clock_an_hour_behind_the_clock_of_one_server_is_logged(workspace: Workspace) -> None:
    """The clock is compared with the header Date of each server's responses, and only that server is named."""
    async with rig(workspace, has_state=False) as found:
        found.a.headers = {"Date": formatdate(time.time() + 3600, usegmt=True)}
        found.a.cut()
        found.b.cut()
        await found.daemon.wait_for_output("clock differs from the API server's")
        found.a.headers = {}
        found.a.cut()
        await found.daemon.wait_for_output("clock agrees with the API server's again")
    [warning] = found.daemon.events("clock differs from the API server's")
    assert (warning["level"], warning["server"]) == ("warning", found.a.url)
    assert warning["server_is_ahead_s"] == pytest.approx(3600, abs=30)


@pytest.mark.parametrize("away", ["projects", "planes"])
@pytest.mark.parametrize("kind", ["project", "service-consumer"])
async def test_project_in_two_sources_has_one_cluster_while_the_source_configured_first_is_unavailable(
    workspace: Workspace, kind: str, away: str
) -> None:
    """After a restart without a state file, only the available source has the projects."""
    projects, provider = workspace.sandbox, ServiceProvider(workspace) if kind == "service-consumer" else None
    async with Sandbox() as planes:

        def create(name: str) -> None:
            projects.projects.create(name, ready=True)
            if provider is not None:
                provider.activate(name)

        for name in ("bank", "shop"):
            create(name)
            uid = projects.projects.read(name)["metadata"]["uid"]
            planes.control_planes.create(name, labels={PROJECT_UID_LABEL: uid}, ready=True)
        kubeconfig = planes.write_kubeconfig(workspace.directory / "planes")
        sources: list[dict[str, Any]] = [
            {"name": "projects", "kind": kind, "discovery_kubeconfig": str(workspace.kubeconfig)},
            {"name": "planes", "kind": "project-control-plane", "discovery_kubeconfig": str(kubeconfig)},
        ]
        if provider is not None:
            sources[0] = provider.source("projects", follow_projects=True)
        sources.sort(key=lambda source: source["name"] != away)
        async with workspace.daemon(sources=sources, discovery_kubeconfig=None) as daemon:
            await daemon.start()
            subscriber = Subscriber(workspace)
            subscriber.connect()
            following = asyncio.create_task(subscriber.run())
            wanted = {f"{away}#bank", f"{away}#shop"}
            await daemon.during(eventually(lambda: subscriber.view == wanted))
            subscriber.events.clear()
            await daemon.kill()
            server = projects if away == "projects" else planes
            await server.stop()
            await daemon.start()
            async with workspace.client() as client, client.watch(accept_pending_sources=True) as watch:
                # A new subscriber receives the clusters of the available source.
                (other,) = {"projects", "planes"} - {away}
                others = {f"{other}#bank", f"{other}#shop"}
                await daemon.during(read_until(watch, lambda: set(watch.clusters) == others))
                await daemon.during(subscribers(workspace, 2))
                await server.start()
                await daemon.during(read_until(watch, lambda: set(watch.clusters) == wanted))
            create("later")
            await daemon.during(eventually(lambda: "projects#later" in subscriber.view))
            assert subscriber.events == ["ENGAGED projects#later"]
            following.cancel()


async def subscribers(workspace: Workspace, count: int) -> None:
    while await workspace.subscribers() < count:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.05)


def both_modes(workspace: Workspace) -> list[dict[str, Any]]:
    """Return sources of the Projects and ProjectControlPlanes of `bank` and `shop`, at two addresses of a server."""
    sandbox, planes = workspace.sandbox, workspace.sandbox.kubeconfig()
    for name in ("bank", "shop"):
        sandbox.milo.found(name, "acme", {})
        sandbox.milo.provision(name)
    cluster = planes["clusters"][0]["cluster"]
    cluster |= {"server": cluster["server"].replace("127.0.0.1", "localhost"), "tls-server-name": "127.0.0.1"}
    path = workspace.directory / "planes"
    path.write_text(json.dumps(planes))
    return [
        {"name": "projects", "kind": "project", "discovery_kubeconfig": str(workspace.kubeconfig)},
        {"name": "planes", "kind": "project-control-plane", "discovery_kubeconfig": str(path)},
    ]


@pytest.mark.parametrize("first", ["projects", "planes"])
async def test_project_in_both_modes_with_unready_control_plane_is_engaged_only_if_project_source_is_first(
    workspace: Workspace, first: str
) -> None:
    """The source that is configured first decides, and `check` counts the clusters that the daemon engages."""
    sources = sorted(both_modes(workspace), key=lambda source: bool(source["name"] != first))
    planes = workspace.sandbox.control_planes
    planes.set_condition("bank", "False", reason="Degraded", message="its etcd is full")
    wanted = {"projects#bank", "projects#shop"} if first == "projects" else {"planes#shop"}
    lines = await checked(workspace, sources=sources, discovery_kubeconfig=None)
    found = re.findall(r"(\w+): clusters: (\d+) of 2 engaged", "\n".join(lines))
    assert Counter({name: int(count) for name, count in found}) == Counter(name.partition("#")[0] for name in wanted)
    async with workspace.daemon(sources=sources, discovery_kubeconfig=None) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch() as watch:
            await daemon.during(
                eventually(lambda: [source.state for source in watch.sources.values()] == 2 * [SourceState.STREAMING])
            )
            await daemon.during(eventually(lambda: set(watch.clusters) == wanted))
            reports = {name: (await client.get(name)).engagement for name in ("projects#bank", "planes#bank")}
            assert "its etcd is full" in reports["planes#bank"].message
            is_claimed = "is also claimed by another object" in reports["projects#bank"].message
            assert (reports["projects#bank"].engaged, is_claimed) == (first == "projects", first == "planes")
            planes.set_condition("bank", reason="Created", message="the control plane is up")
            later = {f"{first}#bank", f"{first}#shop"}
            await daemon.during(eventually(lambda: set(watch.clusters) == later))


async def test_project_in_sources_of_both_modes_is_engaged_once_and_its_kubeconfig_is_synced(
    workspace: Workspace,
) -> None:
    """The log and `check` say in one line that both sources follow one Milo."""
    sources, directory = both_modes(workspace), workspace.directory
    lines = await checked(workspace, sources=sources, discovery_kubeconfig=None)
    assert [line for line in lines if "follow the same projects" in line] == [
        "fail  planes: clusters: 0 of 2 engaged, 2 malformed; the sources planes and projects follow the same projects"
    ]
    issuer = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True, "sources": ["projects"]}
    settings: dict[str, Any] = {"sources": sources, "kubeconfigs": {"issuers": [issuer]}}
    async with workspace.daemon(discovery_kubeconfig=None, **settings) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch() as watch:
            wanted = {"projects#bank", "projects#shop"}  # whichever source answers first
            await daemon.during(read_until(watch, lambda: set(watch.clusters) == wanted))
            await daemon.during(eventually(lambda: watch.sources["planes"].state is SourceState.STREAMING))
            report = await client.get("planes#bank")
            assert "is also claimed by another object" in report.engagement.message
            await daemon.wait_for_output("two sources follow the same projects")
        arguments = ("--address", workspace.address, "sync", "--once", "--dir", f"{directory}/files")
        syncing = await create_subprocess_exec(sys.executable, "-m", "milo_discovery_cli", *arguments)
        assert await syncing.wait() == 0
        workspace.sandbox.milo.found("later", "acme", {})
        workspace.sandbox.milo.provision("later")
        async with workspace.client() as client, client.watch() as watch:
            await daemon.during(read_until(watch, lambda: len(watch.clusters) == len(wanted) + 1))
    told = [(line["source"], line["other"]) for line in daemon.events("two sources follow the same projects")]
    assert told == [("planes", "projects")], "once per source"
    written = {path.name for path in (directory / "files").glob("*.kubeconfig")}
    assert written == {"projects#bank.kubeconfig", "projects#shop.kubeconfig"}
