"""The task that follows kubeconfig files."""

import asyncio
from pathlib import Path

import pytest

from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.sources.kind import FileObject
from milo_discoveryd.watchers import file_driver
from milo_discoveryd.watchers.file_driver import FileDriver
from milo_kube.reflect.view_status import ViewState
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.support.sources import new_source
from tests.unit.fleet.fleets import readable_log, ready
from tests.unit.fleet.test_fleet_malformed import Ledger
from tests.unit.sources.test_kubeconfig_files import content, files_of


@pytest.mark.parametrize("method", ["scan", "announce"])
async def test_unexpected_error_of_the_files_makes_their_source_stale_and_is_retried(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_driver, "POLL_S", 0.01)
    failing = [False]
    original = getattr(KubeconfigFiles, method)

    def fail(*args: object) -> object:
        if failing[0]:
            raise ZeroDivisionError
        return original(*args)

    monkeypatch.setattr(KubeconfigFiles, method, fail)

    def observe(file: FileObject) -> Ready:
        return ready(file.key)

    (tmp_path / "alpha").write_bytes(content("any"))
    files = KubeconfigFiles(files_of("kubeconfig-directory", path=str(tmp_path)), wall=lambda: 4e9)
    source = new_source(Ledger(), readable_log())
    driver = FileDriver(files, observe, source=source, collection=source.collections[0])
    running = asyncio.create_task(driver.run())
    with capture_logs() as logs:
        await eventually(lambda: source.status.state is ViewState.STREAMING)
        failing[0] = True
        await eventually(lambda: source.status.reason == "UnexpectedError")
        assert (source.status.state, source.engagements.engaged) == (ViewState.STALE, 1)
        (tmp_path / "beta").write_bytes(content("any"))
        failing[0] = False
        await eventually(lambda: source.status.state is ViewState.STREAMING and source.engagements.engaged == 2)
    assert all("ZeroDivisionError" in error for error in logs.errors)
    assert logs.errors
    running.cancel()
    await asyncio.wait((running,))
