"""Tests of the pytest fixture milo_sandbox, and of MiloSandbox."""

from __future__ import annotations

import subprocess
import sys

import pytest

from milo_discovery import DiscoveryClient, DisengageReason, Event, EventType, Watch
from milo_discovery.testing import MiloSandbox, ObjectNotFoundError, SandboxError
from milo_discovery.testing.milo_sandbox import _Process

from .summaries import summary


async def test_sandbox_project_is_engaged_updated_and_disengaged(milo_sandbox: MiloSandbox):
    async with DiscoveryClient(milo_sandbox.address) as client, client.watch() as watch:
        await watch.synced()
        assert not watch.clusters
        milo_sandbox.create_project("alpha", labels={"env": "prod"}, organization="initech")
        event = await anext(watch)
        assert summary(event) == "ENGAGED alpha"
        assert event.cluster.organization == "initech"
        assert event.cluster.labels["env"] == "prod"
        milo_sandbox.patch_project("alpha", {"metadata": {"labels": {"env": "dev"}}})
        assert summary(await anext(watch)) == "UPDATED alpha"
        milo_sandbox.set_ready("alpha", False, message="being moved")
        assert (await anext(watch)).reason is DisengageReason.NOT_READY
        milo_sandbox.patch_project("alpha", {"metadata": {"labels": {"env": "prod"}}})
        milo_sandbox.create_project("beta")
        assert summary(await anext(watch)) == "ENGAGED beta"  # alpha is still not ready
        milo_sandbox.set_ready("alpha")
        assert summary(await anext(watch)) == "ENGAGED alpha"
        milo_sandbox.delete_project("alpha")
        assert (await disengagement(watch)).reason is DisengageReason.DELETED


async def test_project_created_as_not_ready_does_not_stay_engaged(milo_sandbox: MiloSandbox):
    async with DiscoveryClient(milo_sandbox.address) as client, client.watch() as watch:
        await watch.synced()
        milo_sandbox.create_project("alpha", ready=False)
        milo_sandbox.create_project("beta")
        while summary(await anext(watch)) != "ENGAGED beta":
            pass
        assert set(watch.clusters) == {"beta"}


async def disengagement(watch: Watch) -> Event:
    """Return the next DISENGAGED event. UPDATED events before it report the requested deletion of the project."""
    while (event := await anext(watch)).type is EventType.UPDATED:
        assert event.cluster.deletion_requested_at is not None
    assert event.type is EventType.DISENGAGED
    return event


@pytest.mark.parametrize("kill", [False, True])
async def test_sandbox_daemon_restart_yields_only_differences(milo_sandbox: MiloSandbox, kill):
    for name in ("alpha", "beta"):
        milo_sandbox.create_project(name)
    async with DiscoveryClient(milo_sandbox.address) as client, client.watch() as watch:
        assert {summary(await anext(watch)) for _ in range(2)} == {"ENGAGED alpha", "ENGAGED beta"}
        milo_sandbox.stop_daemon(kill=kill)
        milo_sandbox.delete_project("beta")
        milo_sandbox.create_project("gamma")
        milo_sandbox.start_daemon()
        assert summary(await disengagement(watch)) == "DISENGAGED beta"
        assert summary(await anext(watch)) == "ENGAGED gamma"
        assert await watch.reconnect() is None
        milo_sandbox.delete_project("gamma")
        assert summary(await disengagement(watch)) == "DISENGAGED gamma"


async def test_sandbox_engages_clusters_in_project_control_plane_mode():
    with MiloSandbox.start("project-control-plane") as milo:
        milo.create_project("alpha", finalizers=["example.com/hold"])
        async with DiscoveryClient(milo.address) as client, client.watch() as watch:
            event = await anext(watch)
            assert event.cluster.endpoint == "https://milo-apiserver.project-alpha.svc.cluster.local:6443"
            assert event.cluster.organization == "acme"
            milo.delete_project("alpha")
            assert (await anext(watch)).cluster.deletion_requested_at is not None
            milo.patch_project("alpha", {"metadata": {"finalizers": None}})
            assert summary(await anext(watch)) == "DISENGAGED alpha"


def test_sandbox_error_response_is_raised(milo_sandbox: MiloSandbox):
    with pytest.raises(ObjectNotFoundError, match=r"404.*not found"):
        milo_sandbox.delete_project("alpha")
    with pytest.raises(SandboxError, match="already running"):
        milo_sandbox.start_daemon()


def test_sandbox_error_quotes_the_log_of_a_daemon_that_failed_to_start(monkeypatch, tmp_path):
    monkeypatch.setattr(MiloSandbox, "start_daemon", _with_a_wrong_mode)
    with pytest.raises(SandboxError, match=r"(?s)exited with status 1 before it was synced:.*no-such-mode"):
        MiloSandbox.start().__enter__()


def _with_a_wrong_mode(milo: MiloSandbox) -> None:
    _Process(["run", "--mode", "no-such-mode"], milo.kubeconfig.with_name("daemon.log")).wait_for(
        lambda: False, "was synced"
    )


def test_sandbox_fixture_names_the_missing_package(pytester_like):
    outcome = pytester_like(
        """
        def test_it(milo_sandbox):
            pass
        """,
        hide="milo_sandbox",
    )
    assert "the package milo-sandbox is not installed" in outcome.stdout
    assert outcome.returncode == 1


def test_pytest_plugin_loads_without_grpc_and_without_warnings(pytester_like):
    outcome = pytester_like(
        """
        import sys

        def test_it():
            assert "milo_discovery.pytest_plugin" in sys.modules
            assert "grpc" not in sys.modules
            assert "google.protobuf" not in sys.modules
        """
    )
    assert outcome.returncode == 0, outcome.stdout


@pytest.fixture
def pytester_like(tmp_path):
    """Return a function that runs a test file in a separate pytest process, with warnings as errors."""

    def run(source: str, *, hide: str = "") -> subprocess.CompletedProcess[str]:
        lines = source.splitlines()[1:]
        indent = len(lines[0]) - len(lines[0].lstrip())
        (tmp_path / "test_operator.py").write_text("\n".join(line[indent:] for line in lines))
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
        )
        (tmp_path / "conftest.py").write_text(
            f"import sys\nsys.modules[{hide!r}] = None\n" if hide else "",
        )
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    return run
