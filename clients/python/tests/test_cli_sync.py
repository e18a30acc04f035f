"""`milo-discovery sync` as a process: its files follow the stream, and stay without one."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from milo_discovery._kubeconfig_access import read_access

from .cli_process import running
from .kubeconfigs import message, text
from .messages import disengaged, engaged, following, renewed, snapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clusters"


async def until(predicate: Callable[[], bool]) -> None:
    while not predicate():  # noqa: ASYNC110  (files have no event to wait for)
        await asyncio.sleep(0.005)


def content(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in path.glob("*.kubeconfig"):
        with suppress(FileNotFoundError):  # removed meanwhile
            found[each.stem] = read_access(each.read_bytes()).token or ""
    return found


def sync(daemon, path: Path, *arguments: str):
    return running("sync", "--dir", str(path), *arguments, address=daemon.address)


async def test_sync_follows_the_stream(daemon, path):
    async with sync(daemon, path, "-l", "env=prod", "--ttl", "5m") as process:
        stream = await daemon.stream()
        assert stream.request.include_kubeconfigs
        assert stream.request.kubeconfig_ttl.seconds == 300
        assert stream.request.filter.label_selector == "env=prod"
        stream.send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        await until(lambda: content(path) == {"a": "a-1", "b": "b-1"})
        stream.send(following("1", "2", renewed("a", "a-2")))
        await until(lambda: content(path) == {"a": "a-2", "b": "b-1"})
        stream.send(following("2", "3", disengaged("b"), engaged("c")))
        await until(lambda: content(path) == {"a": "a-2"})
        stream.send(following("3", "4", renewed("c", "c-1")))
        await until(lambda: content(path) == {"a": "a-2", "c": "c-1"})
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
    assert (process.returncode, out.decode()) == (0, "")
    assert err.decode() == "milo-discovery: synced: 2 clusters\n"
    assert content(path) == {"a": "a-2", "c": "c-1"}
    assert [each["name"] for each in json.loads((path / "index.json").read_text())["clusters"]] == ["a", "c"]


async def test_sync_keeps_files_while_the_daemon_is_down_and_catches_up(daemon, path):
    async with sync(daemon, path) as process:
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        await until(lambda: len(content(path)) == 2)
        await daemon.stop()
        assert process.stderr is not None
        while b"retrying" not in await process.stderr.readline():
            pass
        assert content(path) == {"a": "a-1", "b": "b-1"}
        await daemon.start()
        (await daemon.stream()).send(snapshot("9", engaged("a", token="a-2")))
        await until(lambda: content(path) == {"a": "a-2"})


async def test_sync_restart_removes_files_only_with_a_complete_view(daemon, path):
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        assert await process.wait() == 0
    async with sync(daemon, path):
        stream = await daemon.stream()
        stream.send(snapshot("5", engaged("b", token="b-2"), synced=False))
        assert content(path) == {"a": "a-1", "b": "b-1"}
        stream.send(following("5", "5", engaged("c", token="c-1")))
        await until(lambda: content(path) == {"b": "b-2", "c": "c-1"})


async def test_sync_once_waits_for_each_file(daemon, path):
    async with sync(daemon, path, "--once") as process:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a", token="a-1"), engaged("b")))
        await until(lambda: content(path) == {"a": "a-1"})
        assert process.returncode is None
        stream.send(following("1", "2", renewed("b", "b-1")))
        assert await process.wait() == 0
    assert content(path) == {"a": "a-1", "b": "b-1"}


async def test_sync_reports_a_longer_lifetime_than_requested_once(daemon, path):
    async with sync(daemon, path, "--once", "--ttl", "1s") as process:
        clusters = [engaged(name) for name in "ab"]
        for each in clusters:
            each.kubeconfig.CopyFrom(message(text(token="t")))
        (await daemon.stream()).send(snapshot("1", *clusters))
        _, err = await process.communicate()
    assert err.decode().count("credentials are valid for 10m (1s requested)") == 1


async def test_sync_killed_during_a_write_leaves_no_partial_file(daemon, path):
    """Each file that is there is complete, and the next process continues."""
    whole = {letter: letter * (1 << 19) for letter in "abcdefgh"}
    for attempt in range(3):
        async with sync(daemon, path) as process:
            stream = await daemon.stream()
            names = [f"{attempt}-{letter}" for letter in whole]
            stream.send(*_batches(names, list(whole.values())))
            await until(lambda names=names: any((path / f"{each}.kubeconfig").exists() for each in names))
            process.kill()
            await process.wait()
        for name, token in content(path).items():
            assert token == whole[name[-1]]
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(snapshot("1", engaged("only", token="k")))
        assert await process.wait() == 0
    assert sorted(each.name for each in path.iterdir()) == [".milo-discovery.json", "index.json", "only.kubeconfig"]


def _batches(names: list[str], tokens: list[str]):
    yield snapshot("0", synced=False)
    for number, (name, each) in enumerate(zip(names, tokens, strict=True), 1):
        event = engaged(name, token=each)
        yield following(str(number - 1), str(number), event, synced=number == len(names))


async def test_sync_waits_for_space_on_a_full_disk_and_catches_up(daemon, path, tmp_path):
    """The disk is full for as long as a file exists: a sitecustomize module makes the replacement of files fail."""
    (full := tmp_path / "full").touch()
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os, pathlib\n"
        "real = pathlib.Path.replace\n"
        "def replace(self, target):\n"
        f"    if os.path.exists({str(full)!r}): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    return real(self, target)\n"
        "pathlib.Path.replace = replace\n"
    )
    path.mkdir()
    (path / ".milo-discovery.json").write_text('{"files": [], "index": true}')
    async with running("sync", "--dir", str(path), address=daemon.address, PYTHONPATH=str(tmp_path)) as process:
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1")))
        while b"No space left on device; retrying" not in await process.stderr.readline():
            pass
        assert content(path) == {}
        full.unlink()
        await until(lambda: content(path) == {"a": "a-1"})
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
