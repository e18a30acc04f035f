"""The subscriber with which the conformance kit tests this client."""

import asyncio
import json
import os
import sys
from datetime import timedelta
from typing import Any

from fleet_subscriber import run_fleet

from milo_discovery import DiscoveryClient, DiscoveryError, Event, Kubeconfig, StatusError
from milo_discovery.credentials import AsyncRenewer, PushedKubeconfigs

renewers: dict[str, AsyncRenewer] = {}
pushed: dict[str, Kubeconfig] = {}


def report(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def print_event(event: Event) -> None:
    cluster = event.cluster
    report(
        event.type.name,
        cluster=cluster.name,
        uid=cluster.uid,
        endpoint=cluster.endpoint,
        suspended=cluster.suspended,
        draining=cluster.draining.reason.name if cluster.draining else "",
        reason=event.reason.name,
        kubeconfig=event.kubeconfig.kubeconfig.decode() if event.kubeconfig else "",
    )


def options() -> dict[str, Any]:
    environment = os.environ
    found: dict[str, Any] = {"heartbeat_interval": timedelta(seconds=float(environment["CONFORMANCE_HEARTBEAT_S"]))}
    if selector := environment.get("CONFORMANCE_LABEL_SELECTOR"):
        found["label_selector"] = selector
    if "CONFORMANCE_KUBECONFIGS" in environment:
        found["include_kubeconfigs"] = True
    if name := environment.get("CONFORMANCE_SUBSCRIBER"):
        found |= {"confirm_releases": True, "subscriber": name}
    return found


async def main() -> None:
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    if "CONFORMANCE_FLEET" in os.environ:
        await run_fleet(stdin, report)
        return
    async with DiscoveryClient() as client:
        watch = client.watch(**options())
        following = asyncio.create_task(follow(watch))
        while line := (await stdin.readline()).decode().split():
            match line:
                case ["release", name]:
                    await release(watch, name)
                case ["credential", name]:
                    await credential(client, watch, name)
                case ["kubeconfig", name]:
                    await issue(client, name)
                case ["stop"]:
                    break
        following.cancel()
        if watch.subscriber:
            await client.end_subscription(watch.subscriber)


async def follow(watch: Any) -> None:
    try:
        async for event in watch:
            if event.kubeconfig:
                pushed[event.cluster.name] = event.kubeconfig
            print_event(event)
    except DiscoveryError as error:
        report("FATAL", code=error.code if isinstance(error, StatusError) else type(error).__name__)


async def release(watch: Any, name: str) -> None:
    try:
        await watch.release(watch.clusters[name])
    except DiscoveryError as error:
        report("FAILED", cluster=name, code=getattr(error, "code", ""))


async def credential(client: DiscoveryClient, watch: Any, name: str) -> None:
    """Print the token that an API client for the cluster would send now."""
    if name not in renewers:
        current = lambda: watch.clusters[name]  # noqa: E731
        renewers[name] = client.api_clients.renewer(
            current,
            PushedKubeconfigs(lambda: pushed.get(name), asyncio.Event().wait, lambda: current().endpoint),
            None,
        )
    try:
        report("CREDENTIAL", cluster=name, token=(await renewers[name].access()).token)
    except DiscoveryError as error:
        report("CREDENTIAL", cluster=name, code=getattr(error, "code", ""))


async def issue(client: DiscoveryClient, name: str) -> None:
    try:
        issued = await client.issue_kubeconfig(name)
    except DiscoveryError as error:
        report("FAILED", cluster=name, code=getattr(error, "code", ""))
    else:
        report("ISSUED", cluster=name, kubeconfig=issued.kubeconfig.decode())


asyncio.run(main())
