"""Projects that stop using a service: cleanup before they are disengaged, deletions, and use of the service again."""

from milo_discovery import EventType
from milo_sandbox.resources import CONFIG_MAPS
from tests.end_to_end.process.api_calls import call
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.service_provider import ServiceProvider
from tests.end_to_end.process.watching import next_event

MAPS = "/api/v1/namespaces/default/configmaps"


async def test_operator_cleans_up_after_a_project_deactivates_the_service(workspace: Workspace) -> None:
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


async def test_recreated_project_is_replaced_if_projects_are_followed(workspace: Workspace) -> None:
    provider, projects = ServiceProvider(workspace), workspace.sandbox.projects
    for name in ("shop", "bank"):
        projects.create(name, ready=True)
        provider.activate(name)
    state = str(workspace.directory / "state")
    async with provider.daemon(follow_projects=True, state_directory=state) as daemon, workspace.client() as client:
        await daemon.start()
        async with client.watch() as watch:
            before = {
                event.cluster.name: event.cluster
                for event in [await next_event(watch, EventType.ENGAGED) for _ in "ab"]
            }

            projects.delete("shop")
            projects.create("shop", ready=True)
            ended = await next_event(watch, EventType.DISENGAGED)
            again = await next_event(watch, EventType.ENGAGED)
            assert (ended.cluster.name, again.cluster.name) == ("dns#shop", "dns#shop")
            assert again.cluster.uid == projects.read("shop")["metadata"]["uid"] != before["dns#shop"].uid

            # Replaced while the daemon is down, whose state file has the former project.
            await daemon.terminate()
            projects.delete("bank")
            projects.create("bank", ready=True)
            await daemon.start()
            replaced = await next_event(watch, EventType.DISENGAGED)
            assert replaced.reason is not None
            assert (replaced.cluster.name, replaced.reason.name) == ("dns#bank", "REPLACED")
            again = await next_event(watch, EventType.ENGAGED)
            assert again.cluster.uid == projects.read("bank")["metadata"]["uid"] != before["dns#bank"].uid


async def test_deletion_of_a_followed_project_is_announced_before_its_finalizers_are_removed(
    workspace: Workspace,
) -> None:
    provider, projects = ServiceProvider(workspace), workspace.sandbox.projects
    projects.create("shop", ready=True, finalizers=["example.com/held"])
    provider.activate("shop")
    async with provider.daemon(follow_projects=True) as daemon, workspace.client() as client:
        await daemon.start()
        async with client.watch() as watch:
            await next_event(watch, EventType.ENGAGED)
            projects.delete("shop")
            updated = await next_event(watch, EventType.UPDATED)
            assert updated.cluster.deletion_requested_at is not None
            projects.unfinalize("shop")
            ended = await next_event(watch, EventType.DISENGAGED)
            assert ended.reason is not None
            assert ended.reason.name == "DELETED"


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


async def test_cluster_of_a_consumer_denied_while_the_daemon_was_down_drains_after_the_restart(
    workspace: Workspace,
) -> None:
    provider, sandbox = ServiceProvider(workspace), workspace.sandbox
    sandbox.projects.create("shop", ready=True)
    provider.activate("shop")
    async with provider.daemon(state_directory=str(workspace.directory / "state")) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch(confirm_releases=True) as watch:
            await next_event(watch, EventType.ENGAGED)
        await daemon.terminate()
        provider.set_status("shop", phase="Denied")

        await daemon.start()
        async with workspace.client() as client, client.watch(confirm_releases=True) as watch:
            engaged = (await next_event(watch, EventType.ENGAGED)).cluster
            draining = engaged if engaged.draining else (await next_event(watch, EventType.UPDATED)).cluster
            assert draining.draining is not None
            await watch.release(draining)
            ended = await next_event(watch, EventType.DISENGAGED)
            assert ended.reason is not None
            assert ended.reason.name == "REMOVED"
