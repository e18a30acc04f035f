"""A tenant's project from creation to deletion, as received by operators in either mode."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio

from milo_discovery import PreconditionFailed
from tests.end_to_end.real.daemon_observer import DaemonObserver, disengaged, engaged
from tests.end_to_end.real.inside import ADDRESSES, Inside, addresses_inside
from tests.end_to_end.real.installation import SECRET_KEY, Project
from tests.end_to_end.real.kubectl import user_of
from tests.end_to_end.real.rights import Rights, shipped_role, shipped_role_of_secrets, user
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import MODES

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECRETS = {"name": "deployed", "type": "kubeconfig-secret", "key": SECRET_KEY}


class Installation:
    """Both servers, each with a daemon that has the shipped rights, and its subscriber."""

    def __init__(self, core: RealApi, infrastructure: RealApi, outside: DaemonObserver, inside: DaemonObserver) -> None:
        self._core = core
        self.infrastructure = infrastructure
        self.outside = outside
        """The observer of the daemon in mode `project`."""
        self.inside = inside
        """The observer of the daemon in mode `project-control-plane`."""

    def project(self, name: str) -> Project:
        return Project(name, "acme", self._core, self.infrastructure)


@pytest_asyncio.fixture(loop_scope="session")
async def milo(servers: RealServers) -> AsyncIterator[Installation]:
    async with AsyncExitStack() as stack:
        acquired, observers = [], []
        for mode in MODES:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="milo-")))
            server = await stack.enter_async_context(servers.acquire(mode, directory))
            await Rights(server, user("operator")).give(shipped_role(mode), shipped_role_of_secrets())
            observer = DaemonObserver(
                server,
                directory,
                kubeconfig=server.kubeconfig_as("operator"),
                kubeconfigs={"issuers": [SECRETS]},
                **addresses_inside(mode),
            )
            observers.append(await stack.enter_async_context(observer))
            acquired.append(server)
        (core, infrastructure), (outside, inside) = acquired, observers
        yield Installation(core, infrastructure, outside, inside)


async def test_project_is_engaged_when_control_plane_is_ready(milo: Installation) -> None:
    project = milo.project("alpha")
    for step in (project.ask_for_it, project.begin_control_plane, project.make_namespace, project.deploy):
        await step()
        await milo.inside.expect()
    await project.report("False", "Deploying")
    await milo.inside.expect()

    await project.report("True", "Deployed")

    endpoint = f"https://{ADDRESSES}".format(uid=project.uid)
    await milo.inside.expect(engaged("alpha", at=endpoint))
    await milo.outside.expect()
    await project.report_project("True", "Ready")
    await milo.outside.expect(engaged("alpha"))


async def test_kubeconfig_secret_of_project_opens_its_control_plane(milo: Installation) -> None:
    project = await ready(milo, "delta")

    kubeconfig = await milo.inside.kubeconfig_of("delta")

    async with Inside(milo.infrastructure) as network:
        assert await user_of(kubeconfig, proxy=network.proxy) == "administrator-of-delta"
        assert set(network.asked) == {project.deployed_at}


async def test_kubeconfig_secret_that_is_valid_for_a_week_is_not_issued_by_default(milo: Installation) -> None:
    project = milo.project("epsilon")
    for step in (project.ask_for_it, project.begin_control_plane, project.make_namespace):
        await step()
    await project.deploy(lifetime=timedelta(days=7))
    await project.report("True", "Deployed")
    await milo.inside.expect(engaged("epsilon"))

    with pytest.raises(PreconditionFailed, match="up to 24 hours are issued; set allow_long_lived"):
        await milo.inside.kubeconfig_of("epsilon")


async def test_deleted_project_stays_engaged_until_finalizers_are_removed(milo: Installation) -> None:
    project = await ready(milo, "beta")
    await project.keep("record", "example.com/operator")

    await project.ask_to_delete()
    assert await project.drain() == "CleanupAwaitingCompletion"

    await milo.outside.updated("beta", deletion_message="waiting for record")
    await milo.outside.expect()
    await milo.inside.expect()
    assert await project.drain() == "CleanupAwaitingCompletion"

    await project.undo("record")
    assert await project.drain() == "CleanupComplete"

    await milo.inside.expect(disengaged("beta", "DELETED"))
    await milo.outside.expect(disengaged("beta", "DELETED"))


async def test_recreated_project_is_engaged_as_a_new_cluster(milo: Installation) -> None:
    first = await ready(milo, "gamma")
    await first.ask_to_delete()
    assert await first.drain() == "CleanupComplete"
    await milo.inside.expect(disengaged("gamma", "DELETED"))

    second = milo.project("gamma")
    await second.ask_for_it()
    await second.begin_control_plane()
    await second.report("True", "Deployed")

    assert second.uid != first.uid
    await milo.inside.expect(engaged("gamma", at=f"https://{ADDRESSES}".format(uid=second.uid)))


async def test_recreated_project_is_accessible_with_its_new_secret(milo: Installation) -> None:
    first = await ready(milo, "zeta")
    await milo.inside.kubeconfig_of("zeta")
    await first.ask_to_delete()
    assert await first.drain() == "CleanupComplete"
    await milo.inside.expect(disengaged("zeta", "DELETED"))
    await milo.outside.expect(disengaged("zeta", "DELETED"))

    second = await ready(milo, "zeta")
    kubeconfig = await milo.inside.kubeconfig_of("zeta")

    async with Inside(milo.infrastructure) as network:
        assert await user_of(kubeconfig, proxy=network.proxy) == "administrator-of-zeta"
        assert set(network.asked) == {second.deployed_at} != {first.deployed_at}


async def ready(milo: Installation, name: str) -> Project:
    project = milo.project(name)
    await project.ask_for_it()
    await project.begin_control_plane()
    await project.make_namespace()
    await project.deploy()
    await project.report("True", "Deployed")
    await project.report_project("True", "Ready")
    await milo.inside.expect(engaged(name))
    await milo.outside.expect(engaged(name))
    return project
