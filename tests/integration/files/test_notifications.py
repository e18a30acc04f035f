"""Notifications of the kernel about changed files."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from milo_discoveryd.watchers.inotify import Inotify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is part of Linux")


@pytest.fixture
async def inotify(tmp_path: Path) -> AsyncIterator[Inotify]:
    made = Inotify()
    assert made.watch([tmp_path])
    yield made
    made.close()


async def renamed(inotify: Inotify) -> frozenset[str]:
    async with asyncio.timeout(30):
        await inotify.changed.wait()
    inotify.changed.clear()
    return inotify.take_renamed()


async def test_renamed_files_are_reported_once(inotify: Inotify, tmp_path: Path) -> None:
    names = {"alpha", "b", "a-name-of-several-words", "ünïcode"}
    for name in names:
        (tmp_path / ".new").write_bytes(b"x")
        (tmp_path / ".new").rename(tmp_path / name)
    assert await renamed(inotify) == names
    assert inotify.take_renamed() == frozenset()


async def test_file_written_in_place_is_not_reported_as_renamed(inotify: Inotify, tmp_path: Path) -> None:
    (tmp_path / "alpha").write_bytes(b"x")
    (tmp_path / "alpha").chmod(0o600)
    assert await renamed(inotify) == frozenset()
    (tmp_path / "alpha").rename(tmp_path.parent / "elsewhere")
    assert await renamed(inotify) == frozenset()
