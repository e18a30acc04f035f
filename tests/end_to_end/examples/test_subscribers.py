"""The clients in Python and Go, the Go provider and the subscriber in Node, as processes, against the real daemon.

The conformance kit tests each rule of the clients (`tests/end_to_end/conformance`), but not of the provider, which is
tested here.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from milo_conformance.relay import Relay
from milo_discovery import DiscoveryClient
from milo_sandbox import Sandbox
from tests.end_to_end.examples.program import LINE_WITHIN_S, Program
from tests.end_to_end.process.daemon import DaemonProcess

pytestmark = pytest.mark.timeout(600)  # the first build compiles gRPC

Subscriber = Callable[..., Program]
of_the_provider = pytest.mark.parametrize(
    "command", [pytest.param("provider", marks=pytest.mark.builds)], indirect=True
)


@asynccontextmanager
async def relaying(directory: Path, socket: Path) -> AsyncIterator[Relay]:
    """Forward connections to the daemon's socket."""
    relay = Relay(directory / "relay.sock")
    relay.target = str(socket)
    await relay.listen()
    try:
        yield relay
    finally:
        await relay.close()


def engaged(sandbox: Sandbox, name: str, kind: str = "ENGAGED") -> str:
    path = f"/apis/resourcemanager.miloapis.com/v1alpha1/projects/{name}/control-plane"
    return f"{kind} {name} {sandbox.url}{path}"


async def test_subscriber_prints_snapshot_and_changes(
    sandbox: Sandbox, daemon: DaemonProcess, subscriber: Subscriber
) -> None:
    sandbox.projects.create("first", ready=True)
    async with subscriber() as printed:
        assert await printed.line() == engaged(sandbox, "first")

        sandbox.projects.create("second")
        sandbox.projects.set_condition("second")
        assert await printed.line() == engaged(sandbox, "second")

        sandbox.projects.label("first", {"env": "prod"})
        assert await printed.line() == engaged(sandbox, "first", "UPDATED")

        sandbox.projects.set_condition("second", "False", reason="Broken", message="it broke")
        assert (await printed.line()).startswith("DISENGAGED second NOT_READY")

        sandbox.projects.delete("first")
        assert (await printed.line()).startswith("DISENGAGED first DELETED")


async def test_subscriber_prints_only_differences_after_daemon_restart(
    sandbox: Sandbox, daemon: DaemonProcess, subscriber: Subscriber
) -> None:
    for name in ("goes", "is-replaced", "is-updated", "stays"):
        sandbox.projects.create(name, ready=True)
    async with subscriber() as printed:
        await printed.lines(4)

        await daemon.kill()
        await printed.until("stream broken, reconnecting")
        sandbox.projects.delete("goes")
        sandbox.projects.delete("is-replaced")
        sandbox.projects.create("is-replaced", ready=True)
        sandbox.projects.label("is-updated", {"env": "prod"})
        sandbox.projects.create("comes", ready=True)
        await daemon.start()

        by_cluster: dict[str, list[str]] = {}  # there is no order between clusters
        while sum(map(len, by_cluster.values())) < 5:
            line = await printed.line()
            if "stream broken" not in line:
                by_cluster.setdefault(line.split()[1], []).append(line)
        assert by_cluster == {
            "goes": ["DISENGAGED goes it is missing from the daemon's latest snapshot"],
            "is-replaced": ["DISENGAGED is-replaced REPLACED", engaged(sandbox, "is-replaced")],
            "comes": [engaged(sandbox, "comes")],
            "is-updated": [engaged(sandbox, "is-updated", "UPDATED")],
        }


@of_the_provider
async def test_subscriber_resumes_after_cut_connection(
    sandbox: Sandbox, daemon: DaemonProcess, subscriber: Subscriber, socket: Path, directory: Path
) -> None:
    sandbox.projects.create("first", ready=True)
    async with relaying(directory, socket) as relay, subscriber(relay.address) as printed:
        assert await printed.line() == engaged(sandbox, "first")

        relay.cut()
        sandbox.projects.create("second", ready=True)

        lines = await printed.until("second")
        assert [line for line in lines if "stream broken" not in line] == [engaged(sandbox, "second")]


@of_the_provider
async def test_subscriber_reports_dead_connection_after_three_missed_heartbeats(
    sandbox: Sandbox, daemon: DaemonProcess, subscriber: Subscriber, socket: Path, directory: Path
) -> None:
    sandbox.projects.create("first", ready=True)
    async with relaying(directory, socket) as relay, subscriber(relay.address, HEARTBEAT_S="1") as printed:
        assert await printed.line() == engaged(sandbox, "first")

        relay.fall_silent()
        assert "no heartbeat for 3" in await printed.line()


@of_the_provider
async def test_subscriber_releases_draining_cluster(
    sandbox: Sandbox, draining_daemon: DaemonProcess, subscriber: Subscriber
) -> None:
    sandbox.projects.create("first", ready=True)
    async with subscriber() as printed:
        assert await printed.line() == engaged(sandbox, "first")
        sandbox.projects.set_condition("first", "False", reason="Broken", message="it broke")
        assert (await printed.until("DISENGAGED"))[-1].startswith("DISENGAGED first NOT_READY")
        await eventually_released(draining_daemon, "first")


@of_the_provider
async def test_subscriber_that_reconnects_releases_draining_cluster(
    sandbox: Sandbox, draining_daemon: DaemonProcess, subscriber: Subscriber, directory: Path, socket: Path
) -> None:
    sandbox.projects.create("first", ready=True)
    async with relaying(directory, socket) as relay, subscriber(relay.address) as printed:
        assert await printed.line() == engaged(sandbox, "first")
        relay.cut()
        await printed.until("stream broken")
        sandbox.projects.set_condition("first", "False", reason="Broken", message="it broke")
        assert (await printed.until("DISENGAGED"))[-1].startswith("DISENGAGED first NOT_READY")
        await eventually_released(draining_daemon, "first")


async def eventually_released(daemon: DaemonProcess, name: str) -> None:
    """Wait until the cluster was disengaged, long before the drain's deadline."""
    async with DiscoveryClient(daemon.address) as client, asyncio.timeout(LINE_WITHIN_S):
        while (await client.get(name)).engagement.engaged:  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0.01)


@of_the_provider
async def test_subscriber_disengages_clusters_when_the_ownership_of_a_killed_daemon_expires(
    sandbox: Sandbox, sharded_daemon: DaemonProcess, subscriber: Subscriber
) -> None:
    sandbox.projects.create("first", ready=True)
    async with subscriber() as printed:
        assert (await printed.until("ENGAGED"))[-1] == engaged(sandbox, "first")

        await sharded_daemon.kill()

        assert (await printed.until("OWNERSHIP_LOST"))[-1].startswith("DISENGAGED first OWNERSHIP_LOST")


@of_the_provider
async def test_subscriber_reports_a_permanent_rejection(subscriber: Subscriber, directory: Path) -> None:
    address = f"unix://{directory}/other.sock"
    server = grpc.aio.server()
    server.add_insecure_port(address)
    await server.start()
    async with subscriber(address) as printed:
        assert "refused" in await printed.line()
    await server.stop(None)


@of_the_provider
async def test_subscriber_waits_for_daemon(sandbox: Sandbox, daemon: DaemonProcess, subscriber: Subscriber) -> None:
    await daemon.terminate()
    sandbox.projects.create("first", ready=True)
    async with subscriber() as printed:
        await printed.until("stream broken")
        await daemon.start()
        assert (await printed.until("ENGAGED"))[-1] == engaged(sandbox, "first")
