"""An operator of a service cleans up in a project that stopped using it, before the project is disengaged."""

import asyncio

import pytest

from milo_discovery import EventType, Watch
from milo_discovery.events import Event
from milo_sandbox.resources import CONFIG_MAPS
from tests.end_to_end.process.api_calls import call
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.service_provider import ServiceProvider

MAPS = "/api/v1/namespaces/default/configmaps"
_WITHIN_S = 60.0


async def next_event(watch: Watch, type_: EventType) -> Event:
    async with asyncio.timeout(_WITHIN_S):
        while (event := await anext(watch)).type is not type_:
            pass
    return event


@pytest.mark.parametrize("is_denied", [False, True])
async def test_operator_cleans_up_after_deactivation(workspace: Workspace, is_denied: bool) -> None:
    provider, sandbox = ServiceProvider(workspace), workspace.sandbox
    sandbox.projects.create("shop", ready=True)
    provider.activate("shop")
    shop = sandbox.control_plane("shop")
    async with provider.daemon() as daemon, workspace.client() as client:
        await daemon.start()
        async with client.watch(confirm_releases=True, include_kubeconfigs=True) as watch:
            engaged = await next_event(watch, EventType.ENGAGED)
            assert engaged.kubeconfig is not None
            kept = {"metadata": {"name": "zone"}}
            assert (await call(engaged.kubeconfig.kubeconfig, "POST", MAPS, kept))[0] == 201

            if is_denied:
                provider.set_status("shop", phase="Denied")
            else:
                provider.deactivate("shop")

            draining = await next_event(watch, EventType.UPDATED)
            assert draining.cluster.draining is not None
            assert (await client.get("dns#shop")).engagement.engaged
            # Both the operator's credential and a new one are valid for the remaining work.
            for kubeconfig in (engaged.kubeconfig, await client.issue_kubeconfig("dns#shop")):
                assert (await call(kubeconfig.kubeconfig, "GET", f"{MAPS}/zone"))[0] == 200
            assert (await call(engaged.kubeconfig.kubeconfig, "DELETE", f"{MAPS}/zone"))[0] == 200
            assert shop[CONFIG_MAPS].get("zone", "default") is None
            await watch.release(draining.cluster)

            ended = await next_event(watch, EventType.DISENGAGED)
            assert ended.reason is not None
            assert ended.reason.name == "REMOVED"


async def test_drain_deadline_disengages_a_project_that_its_operator_does_not_release(workspace: Workspace) -> None:
    provider, sandbox = ServiceProvider(workspace), workspace.sandbox
    sandbox.projects.create("shop", ready=True)
    provider.activate("shop")
    async with provider.daemon(drain_s=1) as daemon, workspace.client() as client:
        await daemon.start()
        async with client.watch(confirm_releases=True) as watch:
            await next_event(watch, EventType.ENGAGED)
            provider.deactivate("shop")
            draining = await next_event(watch, EventType.UPDATED)
            assert draining.cluster.draining is not None
            ended = await next_event(watch, EventType.DISENGAGED)
            assert ended.reason is not None
            assert ended.reason.name == "REMOVED"


async def test_project_that_reactivates_the_service_while_draining_is_replaced_at_once(workspace: Workspace) -> None:
    provider, sandbox = ServiceProvider(workspace), workspace.sandbox
    sandbox.projects.create("shop", ready=True)
    provider.activate("shop")
    async with provider.daemon() as daemon, workspace.client() as client:
        await daemon.start()
        async with client.watch(confirm_releases=True) as watch:
            first = await next_event(watch, EventType.ENGAGED)
            provider.deactivate("shop")
            draining = await next_event(watch, EventType.UPDATED)
            assert draining.cluster.draining is not None
            provider.activate("shop")
            ended = await next_event(watch, EventType.DISENGAGED)
            assert ended.reason is not None
            assert ended.reason.name == "REPLACED"
            second = await next_event(watch, EventType.ENGAGED)
            assert second.cluster.incarnation != first.cluster.incarnation
            assert second.cluster.draining is None


@pytest.mark.parametrize("is_denied", [False, True])
async def test_operator_cleans_up_after_a_deactivation_while_the_pod_was_down(
    workspace: Workspace, is_denied: bool
) -> None:
    provider, sandbox = ServiceProvider(workspace), workspace.sandbox
    sandbox.projects.create("shop", ready=True)
    provider.activate("shop")
    async with provider.daemon(state_directory=str(workspace.directory / "state")) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch(confirm_releases=True) as watch:
            await next_event(watch, EventType.ENGAGED)
        await daemon.terminate()
        if is_denied:
            provider.set_status("shop", phase="Denied")
        else:
            provider.deactivate("shop")

        await daemon.start()
        async with workspace.client() as client, client.watch(confirm_releases=True) as watch:
            engaged = (await next_event(watch, EventType.ENGAGED)).cluster
            draining = engaged if engaged.draining else (await next_event(watch, EventType.UPDATED)).cluster
            assert draining.draining is not None
            await watch.release(draining)
            ended = await next_event(watch, EventType.DISENGAGED)
            assert ended.reason is not None
            assert ended.reason.name == "REMOVED"
