"""Fixtures of real servers: built before the first test, started on demand, stopped with the session.

What is not available on this host is reported after the run, with its replacement.
"""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import pytest_asyncio

from tests.conftest import ON_REAL_SERVERS
from tests.end_to_end.real.builds import UnobtainableError, say_to_stderr
from tests.end_to_end.real.programs import MILO_CONTROLLER_MANAGER, Programs, programs
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.whole_milo import WholeMilo, a_whole_milo
from tests.end_to_end.scenarios.concurrent_runs import ScenarioRuns, selected
from tests.end_to_end.scenarios.servers import RealServers
from tests.end_to_end.scenarios.steps import MODES, Mode

NAMESPACE = "milo-system"
_SERVERS_OF_A_MODE = 2
_OUTCOME = pytest.StashKey[Programs | UnobtainableError]()
_PROGRAMS_REPORT = pytest.StashKey[list[str]]()
_REPORT = "real servers"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the servers before the time of a test is measured, with visible progress."""
    wanted = any(ON_REAL_SERVERS in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly or shutil.which("go") is None:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        try:
            session.config.stash[_OUTCOME] = programs(say_to_stderr)
        except UnobtainableError as error:
            session.config.stash[_OUTCOME] = error


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the report of a finished worker process."""
    node.config.stash.setdefault(_PROGRAMS_REPORT, []).extend(getattr(node, "workeroutput", {}).get(_REPORT, []))


def pytest_sessionfinish(session: pytest.Session) -> None:
    found = session.config.stash.get(_OUTCOME, None)
    if not isinstance(found, Programs):
        return
    report = [
        f"{mode}: {program.title}" for mode, program in zip(MODES, (found.milo, found.infrastructure), strict=True)
    ]
    report += [f"MISSING: {missing}" for missing in found.missing]
    session.config.stash[_PROGRAMS_REPORT] = report
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output[_REPORT] = report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if report := config.stash.get(_PROGRAMS_REPORT, []):
        terminalreporter.section("real servers")
        for line in dict.fromkeys(report):
            terminalreporter.line(line)

    rows = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in report.user_properties
        if name == "platform"
    ]
    if rows:
        terminalreporter.section("platforms")
        columns = ("platform", *rows[0][1])
        for row in (columns, *((name, *found.values()) for name, found in rows)):
            terminalreporter.line("  ".join(f"{cell:<16}" for cell in row).rstrip())


@pytest.fixture(scope="session")
def built(pytestconfig: pytest.Config) -> Programs:
    found = pytestconfig.stash.get(_OUTCOME, None)
    if found is None:
        pytest.skip("no go command on this machine: the real servers are built by it")
    if isinstance(found, UnobtainableError):
        raise found
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(built: Programs, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealServers]:
    async with RealServers(built, tmp_path_factory.mktemp("servers"), of_each=_SERVERS_OF_A_MODE) as servers:
        yield servers


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def runs_on_real_servers(
    request: pytest.FixtureRequest, built: Programs, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ScenarioRuns]:
    """Run scenarios on real servers. Those of mode `project-control-plane` have no streaming lists, so the daemon reads
    lists in pages there.
    """
    directory = tmp_path_factory.mktemp("servers-of-scenario-runs")
    async with RealServers(built, directory, of_each=_SERVERS_OF_A_MODE, streaming_lists=["project"]) as servers:
        made = selected(request, servers, at_once=_SERVERS_OF_A_MODE * len(MODES))
        yield made
        await made.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def whole_milo(built: Programs, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WholeMilo]:
    if not built.controllers:
        pytest.skip(f"{MILO_CONTROLLER_MANAGER} is not set to the path of Milo's controller-manager")
    async with a_whole_milo(built, tmp_path_factory.mktemp("whole-milo")) as milo:
        yield milo


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    asked: Mode = request.param
    return asked


@pytest.fixture
def directory() -> Iterator[Path]:
    """A temporary directory with a short path, since a socket's path has 107 characters at most."""
    with TemporaryDirectory(prefix="milo-") as name:
        yield Path(name)


@pytest_asyncio.fixture(loop_scope="session")
async def server(servers: RealServers, mode: Mode, directory: Path) -> AsyncIterator[RealApi]:
    """A running server without objects."""
    async with servers.acquire(mode, directory) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def platform(servers: RealServers, directory: Path) -> AsyncIterator[RealApi]:
    """An API server with the objects that represent clusters, in NAMESPACE."""
    (directory / "platform").mkdir()
    async with servers.acquire("project-control-plane", directory / "platform") as server:
        async with server.api() as api:
            await api.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def workload(servers: RealServers, directory: Path) -> AsyncIterator[RealApi]:
    """The API server of a cluster on the platform."""
    (directory / "workload").mkdir()
    async with servers.acquire("project", directory / "workload") as server:
        yield server
