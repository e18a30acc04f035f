"""The daemon and operators on Milo with its own controllers; skipped unless MILO_CONTROLLER_MANAGER is set."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discovery import DiscoveryClient, Event, EventType, Watch
from milo_discoveryd.sources.reading import ORGANIZATION_LABEL
from tests.end_to_end.lives.world import OPERATORS, World
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.real.daemon_observer import DaemonObserver, disengaged, engaged
from tests.end_to_end.real.inside import ADDRESSES
from tests.end_to_end.real.programs import OWN_DEFINITIONS
from tests.end_to_end.real.servers import MiloApi
from tests.end_to_end.real.watching import set_ready
from tests.end_to_end.real.whole_milo import WholeMilo
from tests.integration.sandbox_conformance import lives
from tests.integration.sandbox_conformance.lives import CONFIG_MAPS, FINALIZER, PROJECTS, Witness
from tests.support.eventually import eventually

pytestmark = [pytest.mark.nightly, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1200)]

WITHIN_S = 180.0
ORDERS = (
    "create delete",
    "create work delete",
    "create work suspend delete",
    "create work suspend delete lift",
    "create work suspend lift delete",
    "create work suspend lift work delete",
    "create work delete suspend",
    "create work delete suspend lift",
    "suspend create delete",
    "suspend create lift work delete",
    "create work suspend delete recreate create",
    "create work delete recreate create work suspend delete lift",
)
"""Fixed orders of the steps that tests/end_to_end/lives takes in random orders."""


def tenant_daemon(core: MiloApi) -> dict[str, Any]:
    """Return settings of a daemon whose kubeconfigs are the tenant's."""
    certificate = {
        "name": "own",
        "type": "client-certificate",
        "ca_certificate": str(core.authority.file),
        "ca_key": str(core.authority.key_file()),
        "common_name": "tenant",
    }
    return {"discovery_kubeconfig": str(core.kubeconfig), "kubeconfigs": {"issuers": [certificate]}}


@pytest.mark.parametrize("operator", OPERATORS)
async def test_project_deletion_completes_after_each_listed_sequence_of_steps(
    whole_milo: WholeMilo, directory: Path, operator: str
) -> None:
    settings = tenant_daemon(whole_milo.core)

    async def take(number: int, order: str) -> None:
        world = World(whole_milo.places, f"{operator}-{number}", OPERATORS[operator].finalizer)
        for step in order.split():
            await (world.recreate() if step == "recreate" else world.do(step))
        await world.end()

    async with OPERATORS[operator].run(directory, settings, whole_milo.places):
        results = await asyncio.gather(*(take(*each) for each in enumerate(ORDERS)), return_exceptions=True)
    assert {order: result for order, result in zip(ORDERS, results, strict=True) if result is not None} == {}


@pytest.mark.parametrize("operator", OPERATORS)
async def test_no_request_reaches_a_deleted_project(whole_milo: WholeMilo, directory: Path, operator: str) -> None:
    """Deletes several projects: the API of a deleted project still responds, so the operator itself has to stop."""
    projects = [f"{operator}-storm-{number}" for number in range(6)]
    worlds = {name: World(whole_milo.places, name, OPERATORS[operator].finalizer) for name in projects}
    address = f"unix://{directory / 'd.sock'}"
    settings = {**tenant_daemon(whole_milo.core), "connectivity": {"interval": "off"}}

    async def all_do(step: str, names: list[str]) -> None:
        await asyncio.gather(*(worlds[name].do(step) for name in names))

    async with (
        OPERATORS[operator].run(directory, settings, whole_milo.places),
        DiscoveryClient(address) as client,
        Witness(whole_milo.places) as witness,
    ):
        for ended in (projects[:3], projects[3:], projects[1:4]):
            await all_do("create", [name for name in projects if not worlds[name].exists])
            others = [name for name in projects if name not in ended]
            await all_do("work", projects)
            await all_do("delete", ended)
            for name in ended:
                await worlds[name].recreate()
            async with asyncio.timeout(WITHIN_S):
                while {cluster.name for cluster in await client.list()} & {*ended}:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            # Requests from before the deletion have arrived once the operator has worked in other projects.
            await all_do("work", others)
            counts = {name: whole_milo.requests_of(name) for name in ended}
            assert all(counts.values())
            for number in range(3):
                for name in ended:
                    status = await lives.config_map(witness, name, f"late-{number}")
                    assert status in (201, 409), status
                await all_do("work", others)
            assert {name: whole_milo.requests_of(name) for name in ended} == counts
        await all_do("create", [name for name in projects if not worlds[name].exists])  # deletes late objects
        for world in worlds.values():
            await world.end()


async def test_cluster_of_a_service_consumer_is_disengaged_when_its_project_is_deleted(
    whole_milo: WholeMilo, directory: Path
) -> None:
    core, consumers = whole_milo.core, "/apis/services.miloapis.com/v1alpha1/serviceconsumers"
    kubeconfig = yaml.safe_load(core.kubeconfig.read_text())
    kubeconfig["clusters"][0]["cluster"]["server"] += f"{PROJECTS}/provider/control-plane"
    own = directory / "provider.kubeconfig"
    own.touch(mode=0o600)
    own.write_text(yaml.safe_dump(kubeconfig))
    source = {
        "name": "dns",
        "kind": "service-consumer",
        "discovery_kubeconfig": str(own),
        "project_kubeconfig": str(core.kubeconfig),
        "settings": {"services": ["dns.example.com"], "follow_projects": True},
    }
    address = f"unix://{directory / 'd.sock'}"
    config = directory / "daemon.yaml"
    config.write_text(yaml.safe_dump({"sources": [source], "listen": [address], "http_listen": "off"}))
    async with Witness(whole_milo.places) as witness, core.api() as api:
        await api.define(yaml.safe_load((OWN_DEFINITIONS / "serviceconsumers.yaml").read_text()))
        for name in ("provider", "consumer"):
            await lives.begin(witness, name)
        consumer = {
            "apiVersion": "services.miloapis.com/v1alpha1",
            "kind": "ServiceConsumer",
            "metadata": {"name": "of-consumer"},
            "spec": {"serviceRef": {"name": "dns"}, "consumerProjectRef": {"name": "consumer"}},
        }
        await witness.ask("POST", consumers, consumer, project="provider")
        active = {"status": {"serviceName": "dns.example.com", "phase": "Active"}}
        await witness.ask("PATCH", f"{consumers}/of-consumer/status", active, project="provider")
        async with DaemonProcess(address, "--config", str(config)) as daemon, asyncio.timeout(WITHIN_S):
            await daemon.start()
            async with DiscoveryClient(address) as client, client.watch() as watch:
                first = await _next(watch, EventType.ENGAGED)
                await lives.config_map(witness, "consumer", "held", FINALIZER)
                await witness.send("DELETE", f"{PROJECTS}/consumer")
                while (await _next(watch, EventType.UPDATED)).cluster.deletion_requested_at is None:
                    pass
                path = f"{CONFIG_MAPS}/held"
                await witness.send("PATCH", path, {"metadata": {"finalizers": None}}, project="consumer")
                ended = await _next(watch, EventType.DISENGAGED)
                assert ended.reason is not None
                assert ended.reason.name == "DELETED"
                # The ServiceConsumer still exists, so the recreated project is engaged as well.
                await lives.begin(witness, "consumer")
                again = await _next(watch, EventType.ENGAGED)
                assert again.cluster.uid != first.cluster.uid
        for name in ("consumer", "provider"):
            await lives.end(witness, name)


async def _next(watch: Watch, type_: EventType) -> Event:
    while (event := await anext(watch)).type is not type_:
        pass
    return event


async def test_project_lifecycle_is_received_in_both_modes(whole_milo: WholeMilo, directory: Path) -> None:
    async with AsyncExitStack() as stack:
        observers = []
        for server, settings in (
            (whole_milo.core, {"drain_timeout": "60s"}),
            (whole_milo.infrastructure, {"internal_address_template": ADDRESSES}),
        ):
            own = directory / server.mode
            own.mkdir()
            observers.append(await stack.enter_async_context(DaemonObserver(server, own, **settings)))
        outside, inside = observers
        confirming = await stack.enter_async_context(_confirming(f"unix://{directory}/project/discovery.sock"))
        witness = await stack.enter_async_context(Witness(whole_milo.places))

        await lives.begin(witness, "whole")
        await outside.expect(engaged("whole"))
        await inside.expect()
        await set_ready(whole_milo.infrastructure, "whole", True)  # the installation does this
        await inside.expect(engaged("whole"))
        await eventually(lambda: confirming == [EventType.ENGAGED], within_s=WITHIN_S)

        await lives.config_map(witness, "whole", "held", FINALIZER)
        await lives.suspend(witness, "whole-s", "whole", "Billing")
        await outside.updated("whole", suspended=True)
        await witness.send("DELETE", f"{lives.SUSPENSIONS}/whole-s")
        await outside.updated("whole", suspended=False)

        await witness.send("DELETE", f"{PROJECTS}/whole")
        message = f'configmaps "default/held" (finalizers: {FINALIZER})'
        await outside.updated("whole", deletion_message=f"Waiting for project resources to be removed: {message}")
        await outside.expect()
        await inside.expect()
        path = f"{CONFIG_MAPS}/held"
        await witness.send("PATCH", path, {"metadata": {"finalizers": None}}, project="whole")
        await inside.expect(disengaged("whole", "DELETED"))
        await outside.expect(disengaged("whole", "DELETED"))
        await eventually(lambda: confirming[-1] is EventType.DISENGAGED, within_s=WITHIN_S)

        await lives.begin(witness, "whole")
        await outside.expect(engaged("whole"))
        await lives.end(witness, "whole")
        await outside.expect(disengaged("whole", "DELETED"))


@pytest.mark.parametrize("streaming_lists", ["auto", "off"])
async def test_daemon_with_the_context_of_an_organization_engages_only_projects_of_that_organization(
    whole_milo: WholeMilo, directory: Path, streaming_lists: str
) -> None:
    core = whole_milo.core
    kubeconfig = yaml.safe_load(core.kubeconfig.read_text())
    kubeconfig["clusters"][0]["cluster"]["server"] += f"{lives.GROUP}/organizations/acme/control-plane"
    own = directory / "acme.kubeconfig"
    own.touch(mode=0o600)
    own.write_text(yaml.safe_dump(kubeconfig))
    before = {"acme": ["of-acme-1", "of-acme-2"], "evil": ["of-evil-1", "of-evil-2"]}
    later = {"evil": ["of-evil-3"], "acme": ["of-acme-3"]}
    async with Witness(whole_milo.places) as witness:
        try:
            await _create(witness, before)
            observer = DaemonObserver(
                core,
                directory,
                kubeconfig=own,
                watch={"streaming_lists": streaming_lists},
                project_kubeconfig=str(core.kubeconfig),
            )
            async with observer:
                await observer.expect(*map(engaged, before["acme"]))
                await _create(witness, later)
                await observer.expect(engaged("of-acme-3"))
                for name in ("of-evil-1", "of-evil-3", "of-acme-1"):
                    await witness.send("PATCH", f"{PROJECTS}/{name}", {"metadata": {"labels": {"seen": "yes"}}})
                await observer.updated("of-acme-1", labels={"seen": "yes", ORGANIZATION_LABEL: "acme"})
                assert sorted(await observer.engaged_names()) == ["of-acme-1", "of-acme-2", "of-acme-3"]
        finally:
            for names in (*before.values(), *later.values()):
                for name in names:
                    await lives.end(witness, name)


async def _create(witness: Witness, organizations: Mapping[str, list[str]]) -> None:
    for organization, names in organizations.items():
        for name in names:
            await lives.begin(witness, name, organization=organization)


@asynccontextmanager
async def _confirming(address: str) -> AsyncIterator[list[EventType]]:
    """Run a subscriber that confirms the release of each cluster that drains; yield the types of its events."""
    seen: list[EventType] = []

    async def follow(client: DiscoveryClient) -> None:
        watch = client.watch(confirm_releases=True)
        async for event in watch:
            if event.type in (EventType.ENGAGED, EventType.DISENGAGED):
                seen.append(event.type)
            elif event.cluster.draining is not None:
                await watch.release(event.cluster)

    async with DiscoveryClient(address) as client:
        following = asyncio.create_task(follow(client))
        try:
            yield seen
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
