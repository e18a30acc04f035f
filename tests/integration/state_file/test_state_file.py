"""The state file: writing, reading and permissions."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from milo_discoveryd.state_file import state_file
from milo_discoveryd.state_file.encoding import StateOrigin, StoredCluster, StoredFleet
from milo_discoveryd.state_file.state_file import FILE, StateFile, directory_problem, prepare_directory
from tests.support.eventually import eventually
from tests.support.logs import capture_logs
from tests.unit.state_file.test_encoding import ORIGIN, kept


class Fleet:
    def __init__(self) -> None:
        self.clusters: list[StoredCluster] = []
        self._bell = asyncio.Event()

    def now_holds(self, *clusters: StoredCluster) -> None:
        self.clusters = [*clusters]
        self._bell.set()

    def stored(self, origin: StateOrigin, highest_version: str = "") -> StoredFleet:
        return StoredFleet(origin, 1.0, tuple(self.clusters), highest_version)

    async def changed(self) -> None:
        await self._bell.wait()
        self._bell.clear()


@asynccontextmanager
async def running(keeper: StateFile, fleet: Fleet) -> AsyncIterator[None]:
    task = asyncio.create_task(keeper.save_changes(lambda: fleet.stored(keeper.origin), fleet.changed))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def recalled(directory: Path) -> Callable[[], list[str]]:
    def names() -> list[str]:
        image = StateFile(directory, ORIGIN).load()
        return [] if image is None else [cluster.target.name for cluster in image.clusters]

    return names


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "WRITE_INTERVAL_S", 0.001)


async def test_changed_state_is_written_and_read_by_next_daemon(tmp_path: Path) -> None:
    fleet, names = Fleet(), recalled(tmp_path)
    async with running(StateFile(tmp_path, ORIGIN), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually(lambda: names() == ["alpha"])
        fleet.now_holds(kept("alpha"), kept("beta"))
        await eventually(lambda: names() == ["alpha", "beta"])


async def test_latest_state_is_written_at_shutdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "WRITE_INTERVAL_S", 3600.0)
    fleet, names = Fleet(), recalled(tmp_path)
    async with running(StateFile(tmp_path, ORIGIN), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually(lambda: names() == ["alpha"])
        fleet.now_holds(kept("beta"))
    assert names() == ["beta"]


async def test_run_without_complete_list_keeps_previous_state_file(tmp_path: Path) -> None:
    fleet, names = Fleet(), recalled(tmp_path)
    async with running(StateFile(tmp_path, ORIGIN), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually(lambda: names() == ["alpha"])
    async with running(StateFile(tmp_path, ORIGIN), Fleet()):
        await asyncio.sleep(0)  # the task waits for the first change
    assert names() == ["alpha"]


async def test_state_file_has_mode_0600_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    fleet, names = Fleet(), recalled(tmp_path)
    async with running(StateFile(tmp_path, ORIGIN), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually(lambda: names() == ["alpha"])
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_missing_state_file_restores_nothing(tmp_path: Path) -> None:
    assert StateFile(tmp_path, ORIGIN).load() is None


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_malformed_state_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert StateFile(tmp_path, ORIGIN).load() is None


async def test_state_file_of_another_source_is_ignored(tmp_path: Path) -> None:
    fleet = Fleet()
    async with running(StateFile(tmp_path, StateOrigin("https://other.test", "project")), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually((tmp_path / FILE).exists)
    assert StateFile(tmp_path, ORIGIN).load() is None


async def test_state_file_is_written_as_soon_as_its_directory_exists(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    fleet, names = Fleet(), recalled(missing)
    async with running(StateFile(missing, ORIGIN), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually(lambda: not fleet._bell.is_set())
        missing.mkdir()
        fleet.now_holds(kept("beta"))
        await eventually(lambda: names() == ["beta"])


async def test_f37_last_written_state_is_kept_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, names = Fleet(), recalled(tmp_path)
    attempts = 0

    def full(descriptor: int) -> None:
        nonlocal attempts
        attempts += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(StateFile(tmp_path, ORIGIN), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually(lambda: names() == ["alpha"])
        with monkeypatch.context() as while_it_is_full:
            while_it_is_full.setattr(os, "fsync", full)
            fleet.now_holds(kept("beta"))
            await eventually(lambda: attempts >= 2)
            assert names() == ["alpha"]
        fleet.now_holds(kept("gamma"))
        await eventually(lambda: names() == ["gamma"])


async def test_failed_write_is_repeated_without_another_change(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    fleet, names = Fleet(), recalled(missing)
    with capture_logs() as logs:
        async with running(StateFile(missing, ORIGIN), fleet):
            fleet.now_holds(kept("alpha"))
            await eventually(lambda: any(line["event"] == "state not written" for line in logs))
            missing.mkdir()
            await eventually(lambda: names() == ["alpha"])
    assert [line["event"] for line in logs] == ["state not written", "state written again"]


async def written(directory: Path) -> Path:
    fleet, names = Fleet(), recalled(directory)
    async with running(StateFile(directory, ORIGIN), fleet):
        fleet.now_holds(kept("alpha"))
        await eventually(lambda: names() == ["alpha"])
    return directory / FILE


async def test_world_writable_state_file_is_rejected(tmp_path: Path) -> None:
    (await written(tmp_path)).chmod(0o646)
    assert StateFile(tmp_path, ORIGIN).load() is None


async def test_state_file_writable_by_a_group_that_the_daemon_is_not_in_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await written(tmp_path)
    file.chmod(0o660)
    assert StateFile(tmp_path, ORIGIN).load() is not None  # as after the kubelet set the volume's group to fsGroup
    monkeypatch.setattr(os, "getegid", lambda: file.stat().st_gid + 1)
    monkeypatch.setattr(os, "getgroups", list)
    assert StateFile(tmp_path, ORIGIN).load() is None


def test_missing_state_directory_is_created_with_access_only_for_the_daemon(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)  # as the root of an emptyDir volume
    directory = tmp_path / "state"
    prepare_directory(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert directory_problem(directory) is None
    assert directory_problem(tmp_path) is not None


def test_state_directory_that_cannot_be_created_is_logged(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with capture_logs() as logs:
        prepare_directory(tmp_path / "file" / "state")
    assert [entry["event"] for entry in logs] == ["state directory not created"]


async def test_state_file_in_a_world_writable_directory_is_rejected(tmp_path: Path) -> None:
    await written(tmp_path)
    tmp_path.chmod(0o777)
    assert StateFile(tmp_path, ORIGIN).load() is None
    tmp_path.chmod(0o1777)
    assert StateFile(tmp_path, ORIGIN).load() is not None


async def test_state_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await written(tmp_path)
    owner = file.stat().st_uid
    if owner == 0:
        os.chown(file, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert StateFile(tmp_path, ORIGIN).load() is None


async def test_state_file_that_is_a_symlink_or_a_pipe_is_rejected(tmp_path: Path) -> None:
    file = await written(tmp_path)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert StateFile(tmp_path, ORIGIN).load() is None
    file.unlink()
    os.mkfifo(file)
    assert StateFile(tmp_path, ORIGIN).load() is None


async def test_state_file_that_is_too_large_is_rejected_without_reading_it(tmp_path: Path) -> None:
    os.truncate(await written(tmp_path), 1 << 40)
    with capture_logs() as lines:
        assert StateFile(tmp_path, ORIGIN, max_bytes=1 << 20).load() is None
    assert "bytes long; at most 1048576 are read" in str(lines)


async def test_pipe_in_place_of_the_temporary_state_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{FILE}.new")
    assert (await written(tmp_path)).is_file()
    assert StateFile(tmp_path, ORIGIN).load() is not None


async def test_highest_resource_version_is_kept_in_the_state_file(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.now_holds(kept("alpha"))
    saving = StateFile(tmp_path, ORIGIN).save_changes(lambda: fleet.stored(ORIGIN, "120"), fleet.changed)
    task = asyncio.create_task(saving)
    await eventually((tmp_path / FILE).exists)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    stored = StateFile(tmp_path, ORIGIN).load()
    assert stored is not None
    assert stored.highest_version == "120"


async def test_unexpected_error_of_a_write_is_logged_and_the_next_write_succeeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write, failures = state_file.write, [1]

    def written_later(fleet: StoredFleet, file: BinaryIO) -> None:
        if failures:
            failures.clear()
            raise ZeroDivisionError
        write(fleet, file)

    monkeypatch.setattr(state_file, "write", written_later)
    fleet, names = Fleet(), recalled(tmp_path)
    with capture_logs() as logs:
        async with running(StateFile(tmp_path, ORIGIN), fleet):
            fleet.now_holds(kept("alpha"))
            await eventually(lambda: names() == ["alpha"])
    assert [entry["event"] for entry in logs] == ["state not written", "state written again"]
