"""What an operator's author gets for their own tests: the fixture, and the sandbox behind it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from milo_discovery import DiscoveryClient, DisengageReason, Event, EventType
from milo_discovery.testing import MiloSandbox, SandboxError, _Process

from .sayings import said


async def test_a_project_can_be_followed_through_its_life(milo_sandbox: MiloSandbox):
    async with DiscoveryClient(milo_sandbox.address) as client, client.watch() as watch:
        await watch.synced()
        assert not watch.clusters
        milo_sandbox.create_project("alpha", labels={"env": "prod"}, organization="initech", ready=False)
        milo_sandbox.set_ready("alpha")
        event = await anext(watch)
        assert said(event) == "ENGAGED alpha"
        assert event.cluster.organization == "initech"
        assert event.cluster.labels["env"] == "prod"
        milo_sandbox.patch_project("alpha", {"metadata": {"labels": {"env": "dev"}}})
        assert said(await anext(watch)) == "UPDATED alpha"
        milo_sandbox.set_ready("alpha", False, message="being moved")
        assert (await anext(watch)).reason is DisengageReason.NOT_READY
        milo_sandbox.set_ready("alpha")
        assert said(await anext(watch)) == "ENGAGED alpha"
        milo_sandbox.delete_project("alpha")
        assert (await anext(watch)).reason is DisengageReason.DELETED


@pytest.mark.parametrize("kill", [False, True])
async def test_a_daemon_that_was_away_tells_only_what_changed(milo_sandbox: MiloSandbox, kill):
    for name in ("alpha", "beta"):
        milo_sandbox.create_project(name)
    async with DiscoveryClient(milo_sandbox.address) as client, client.watch() as watch:
        assert {said(await anext(watch)) for _ in range(2)} == {"ENGAGED alpha", "ENGAGED beta"}
        milo_sandbox.stop_daemon(kill=kill)
        milo_sandbox.delete_project("beta")
        milo_sandbox.create_project("gamma")
        milo_sandbox.start_daemon()
        told: list[Event] = [await anext(watch) for _ in range(2)]
        assert [said(event) for event in told] == ["DISENGAGED beta", "ENGAGED gamma"]
        assert await watch.reconnect() is None
        milo_sandbox.delete_project("gamma")
        assert (await anext(watch)).type is EventType.DISENGAGED


async def test_the_other_mode_is_a_word_away():
    with MiloSandbox.start("project-control-plane") as milo:
        milo.create_project("alpha", finalizers=["example.com/hold"])
        async with DiscoveryClient(milo.address) as client, client.watch() as watch:
            event = await anext(watch)
            assert event.cluster.endpoint == "https://milo-apiserver.project-alpha.svc.cluster.local:6443"
            assert event.cluster.organization == "acme"
            milo.delete_project("alpha")
            assert (await anext(watch)).cluster.deletion_requested_at is not None
            milo.patch_project("alpha", {"metadata": {"finalizers": None}})
            assert said(await anext(watch)) == "DISENGAGED alpha"


def test_what_milo_refuses_is_said(milo_sandbox: MiloSandbox):
    with pytest.raises(SandboxError, match=r"404.*not found"):
        milo_sandbox.delete_project("alpha")
    with pytest.raises(SandboxError, match="the daemon runs already"):
        milo_sandbox.start_daemon()


def test_a_daemon_that_cannot_start_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(MiloSandbox, "start_daemon", _with_a_wrong_mode)
    with pytest.raises(SandboxError, match=r"(?s)ended with status 1 before it was synced:.*no-such-mode"):
        MiloSandbox.start().__enter__()


def _with_a_wrong_mode(milo: MiloSandbox) -> None:
    _Process(["run", "--mode", "no-such-mode"], milo.kubeconfig.with_name("daemon.log")).wait_for(
        lambda: False, "was synced"
    )


def test_without_the_daemons_package_the_fixture_says_what_to_install(pytester_like):
    outcome = pytester_like(
        """
        def test_it(milo_sandbox):
            pass
        """,
        hide="milo_discoveryd",
    )
    assert "pip install milo-discoveryd" in outcome.stdout
    assert outcome.returncode == 1


def test_the_plugin_costs_a_test_run_neither_grpc_nor_warnings(pytester_like):
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
    """Runs a test file in a pytest of its own, with warnings as errors."""

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
