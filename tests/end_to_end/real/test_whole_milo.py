"""The daemon and operators on Milo with its own controllers; only where MILO_CONTROLLER_MANAGER names them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import yaml

from milo_discovery import DiscoveryClient, EventType
from milo_discoveryd.sources.reading import ORGANIZATION_LABEL
from tests.end_to_end.lives.world import OPERATORS, World
from tests.end_to_end.real.daemon_observer import DaemonObserver, disengaged, engaged
from tests.end_to_end.real.inside import ADDRESSES
from tests.end_to_end.real.watching import set_ready
from tests.end_to_end.real.whole_milo import WholeMilo
from tests.integration.sandbox_conformance import lives
from tests.integration.sandbox_conformance.lives import CONFIG_MAPS, FINALIZER, PROJECTS, Witness
from tests.support.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1200)]

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
"""Paths of the state machine in tests/end_to_end/lives."""


@pytest.mark.parametrize("operator", OPERATORS)
async def test_projects_end_deleted_in_every_order(whole_milo: WholeMilo, directory: Path, operator: str) -> None:
    core = whole_milo.core
    certificate = {
        "name": "own",
        "type": "client-certificate",
        "ca_certificate": str(core.authority.file),
        "ca_key": str(core.authority.key_file()),
        "common_name": "tenant",
    }
    settings = {"discovery_kubeconfig": str(core.kubeconfig), "kubeconfigs": {"issuers": [certificate]}}

    async def take(number: int, order: str) -> None:
        world = World(whole_milo.places, f"{operator}-{number}", OPERATORS[operator].held)
        for step in order.split():
            await (world.recreate() if step == "recreate" else world.do(step))
        await world.end()

    async with OPERATORS[operator].run(directory, settings, whole_milo.places):
        results = await asyncio.gather(*(take(*each) for each in enumerate(ORDERS)), return_exceptions=True)
    assert {order: result for order, result in zip(ORDERS, results, strict=True) if result is not None} == {}


async def test_life_of_a_project_in_both_modes(whole_milo: WholeMilo, directory: Path) -> None:
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
        await set_ready(whole_milo.infrastructure, "whole", True)  # up to the installation
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
async def test_context_of_an_organization_engages_its_projects_only(
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
