"""Clusters in kubeconfig files, followed by a daemon process; control planes of the sandbox are the clusters."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from milo_discovery import DiscoveryClient, EventType, SourceState
from milo_sandbox.kubeconfigs import write
from tests.end_to_end.process.api_calls import user_of
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.watching import following, next_event, until
from tests.support.eventually import eventually

_WITHIN_S = 60.0
_HALF_WRITTEN_S = 2.0


class Files:
    """A directory of kubeconfigs, and a daemon that follows it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.directory = workspace.directory / "clusters"
        self.directory.mkdir()

    def config(self, project: str, subject: str = "operator") -> dict[str, Any]:
        sandbox = self.workspace.sandbox
        if project not in sandbox.projects:
            sandbox.projects.create(project, ready=True)
        return sandbox.kubeconfig(project=project, token=sandbox.token(subject))

    def put(self, name: str, project: str = "", subject: str = "operator") -> None:
        write(self.directory / name, self.config(project or name.partition(".")[0], subject))

    def daemon(self, kind: str, path: Path, *, is_settled: bool = True, **settings: Any) -> DaemonProcess:
        """Return a daemon for these files; with `is_settled`, their modification times are long ago."""
        for entry in path.iterdir() if path.is_dir() else (path,):
            if is_settled and entry.is_file():
                os.utime(entry, (0, 0))
        source = {"name": "files", "kind": kind, "settings": {"path": str(path)}}
        config = {
            "sources": [source],
            "kubeconfigs": {"issuers": [{"name": "files", "type": "kubeconfig-file"}]},
            "listen": [self.workspace.address],
            "http_listen": "off",
            "connectivity": {"interval": "off"},
            **settings,
        }
        file = self.workspace.directory / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        return DaemonProcess(self.workspace.address, "--config", str(file), is_forked=True)


@pytest.fixture
def files(workspace: Workspace) -> Files:
    return Files(workspace)


async def source_is(client: DiscoveryClient, state: SourceState, reason: str) -> None:
    async with asyncio.timeout(_WITHIN_S):
        while True:
            status = (await client.server_info()).source
            if (status.state, status.reason) == (state, reason):
                return
            await asyncio.sleep(0.05)


async def test_kubeconfig_directory_engages_and_disengages_clusters_with_their_files(files: Files) -> None:
    files.put("alpha.kubeconfig")
    files.put("beta", "beta")
    files.put(".hidden", "hidden")
    files.put("gamma.tmp", "gamma")
    (files.directory / "broken.yaml").write_text("apiVersion: v1\nkind: Con")
    async with following(files.daemon("kubeconfig-directory", files.directory)) as (client, watch):
        assert set(watch.clusters) == {"files#alpha", "files#beta"}
        assert watch.clusters["files#alpha"].endpoint == files.workspace.sandbox.control_plane_url("alpha")
        assert await user_of((await client.issue_kubeconfig("files#alpha")).kubeconfig) == "operator"
        files.put("broken.yaml", "broken")
        await until(watch, lambda seen: "files#broken" in seen.clusters)
        (files.directory / "beta").unlink()
        await until(watch, lambda seen: "files#beta" not in seen.clusters)
        report = await client.get("files#beta")
        assert report.engagement.reason.name == "DELETED"


async def test_kubeconfig_directory_that_exceeds_the_objects_limit_is_stale_until_files_are_removed(
    files: Files,
) -> None:
    files.put("alpha")
    for number in range(2_200):
        (files.directory / f"copy-{number}").hardlink_to(files.directory / "alpha")
    daemon = files.daemon("kubeconfig-directory", files.directory, watch={"objects_limit": "1MiB"})
    async with daemon, files.workspace.client() as client:
        await daemon.start()
        await source_is(client, SourceState.STALE, "OverBudget")
        for file in files.directory.glob("copy-*"):
            file.unlink()
        await source_is(client, SourceState.STREAMING, "")
        async with client.watch() as watch:
            await until(watch, lambda seen: set(seen.clusters) == {"files#alpha"})


async def test_replaced_credential_of_a_kubeconfig_file_is_issued_at_once(files: Files) -> None:
    files.put("alpha")
    async with (
        following(files.daemon("kubeconfig-directory", files.directory)) as (client, watch),
        client.watch(include_kubeconfigs=True) as kubeconfigs,
    ):
        first = await anext(event async for event in kubeconfigs if event.kubeconfig is not None)
        assert first.kubeconfig is not None
        assert await user_of(first.kubeconfig.kubeconfig) == "operator"
        files.put("alpha", subject="successor")
        async with asyncio.timeout(_WITHIN_S):
            renewed = await anext(event async for event in kubeconfigs if event.kubeconfig is not None)
        assert renewed.kubeconfig is not None
        assert await user_of(renewed.kubeconfig.kubeconfig) == "successor"
        assert renewed.cluster.incarnation == first.cluster.incarnation
        assert set(watch.clusters) == {"files#alpha"}


async def test_cluster_is_replaced_when_its_kubeconfig_file_changes_to_another_server(files: Files) -> None:
    files.put("alpha", "shop")
    async with following(files.daemon("kubeconfig-directory", files.directory)) as (client, watch):
        before = watch.clusters["files#alpha"]
        files.put("alpha", "bank")
        await until(watch, lambda seen: seen.clusters["files#alpha"].incarnation != before.incarnation)
        assert watch.clusters["files#alpha"].endpoint == files.workspace.sandbox.control_plane_url("bank")
        assert watch.clusters["files#alpha"].uid != before.uid
        assert await user_of((await client.issue_kubeconfig("files#alpha")).kubeconfig) == "operator"


@pytest.mark.parametrize("content", [b"", b"apiVersion: v1\nkind: Con", b"\xff" * 1000, b"a: " + b"x" * 300_000])
async def test_kubeconfig_file_with_unusable_content_keeps_its_cluster_engaged(files: Files, content: bytes) -> None:
    files.put("alpha")
    files.put("beta")
    async with following(files.daemon("kubeconfig-directory", files.directory)) as (client, watch):
        (files.directory / "alpha").write_bytes(content)
        files.put("later")
        await until(watch, lambda seen: "files#later" in seen.clusters)
        async with asyncio.timeout(_WITHIN_S):
            while (
                "the cluster stays as last known: alpha"
                not in (report := await client.get("files#alpha")).engagement.message
            ):
                assert report.engagement.engaged
                await asyncio.sleep(0.05)
        assert report.engagement.engaged


def cut(whole: str) -> str:
    """Return the beginning of a kubeconfig whose last line is its server: a valid kubeconfig with a shorter address."""
    return whole[: whole.rindex("/")]


def server_last(config: dict[str, Any]) -> str:
    clusters = config.pop("clusters")
    server = clusters[0]["cluster"].pop("server")
    clusters[0]["cluster"]["server"] = server
    return yaml.safe_dump({**config, "clusters": clusters}, sort_keys=False, width=10_000)


async def test_half_written_kubeconfig_file_engages_nothing(files: Files) -> None:
    alpha, beta = server_last(files.config("alpha")), server_last(files.config("beta"))
    (files.directory / "alpha").write_text(alpha)
    async with following(files.daemon("kubeconfig-directory", files.directory)) as (_, watch):
        before = watch.clusters["files#alpha"]
        (files.directory / "alpha").write_text(cut(alpha))
        (files.directory / "beta").write_text(cut(beta))
        await asyncio.sleep(_HALF_WRITTEN_S)
        (files.directory / "alpha").write_text(alpha)
        (files.directory / "beta").write_text(beta)
        seen: list[tuple[str, str]] = []
        async with asyncio.timeout(_WITHIN_S):
            while "files#beta" not in watch.clusters:
                event = await anext(watch)
                seen.append((event.cluster.name, event.cluster.endpoint))
        assert set(seen) == {
            (f"files#{name}", files.workspace.sandbox.control_plane_url(name)) for name in ("alpha", "beta")
        }
        assert watch.clusters["files#alpha"].incarnation == before.incarnation


async def test_cluster_of_a_kind_context_stays_engaged_while_its_file_is_half_written(files: Files) -> None:
    kubeconfig, config = files.workspace.directory / "config", files.config("alpha")
    config["contexts"] = [{**config["contexts"][0], "name": "kind-alpha"}]
    whole = yaml.safe_dump(config)  # in the order of keys, as kind writes them
    kubeconfig.write_text(whole)
    async with following(files.daemon("kind", kubeconfig)) as (client, watch):
        before = watch.clusters["files#alpha"]
        kubeconfig.write_text(whole[: whole.index("contexts:")])
        await asyncio.sleep(_HALF_WRITTEN_S)
        kubeconfig.write_text(whole)
        await asyncio.sleep(_HALF_WRITTEN_S)
        report = await client.get("files#alpha")
        assert report.engagement.engaged
        assert report.cluster.incarnation == before.incarnation


async def test_starting_daemon_waits_until_a_half_written_kubeconfig_is_complete(files: Files) -> None:
    alpha = server_last(files.config("alpha"))
    files.put("beta")
    (files.directory / "alpha").write_text(cut(alpha))
    daemon = files.daemon("kubeconfig-directory", files.directory, is_settled=False)
    complete = asyncio.get_running_loop().call_later(_HALF_WRITTEN_S, (files.directory / "alpha").write_text, alpha)
    async with following(daemon) as (_, watch):
        assert complete.when() < asyncio.get_running_loop().time()
        assert {name: cluster.endpoint for name, cluster in watch.clusters.items()} == {
            f"files#{name}": files.workspace.sandbox.control_plane_url(name) for name in ("alpha", "beta")
        }


async def test_source_is_stale_while_its_kubeconfig_directory_is_missing(files: Files) -> None:
    files.put("alpha")
    files.put("beta")
    async with following(files.daemon("kubeconfig-directory", files.directory)) as (client, watch):
        moved = files.directory.rename(files.workspace.directory / "moved")
        await source_is(client, SourceState.STALE, "FileNotFound")
        assert set(watch.clusters) == {"files#alpha", "files#beta"}
        moved.rename(files.directory)
        await source_is(client, SourceState.STREAMING, "")
        files.put("gamma")
        await until(watch, lambda seen: set(seen.clusters) == {"files#alpha", "files#beta", "files#gamma"})


@pytest.mark.parametrize("is_restarted", [False, True], ids=["running", "restarted"])
async def test_slow_restore_of_deleted_kubeconfig_files_disengages_no_cluster(files: Files, is_restarted: bool) -> None:
    names = [f"c{number}" for number in range(10)]
    for name in names:
        files.put(name)
    daemon = files.daemon("kubeconfig-directory", files.directory)
    async with following(daemon) as (client, watch):
        assert len(watch.clusters) == 10
        if is_restarted:
            await daemon.kill()
        # In one step: a scan between two of seven deletions would see less than half of the files deleted.
        remaining = files.workspace.directory / "remaining"
        shutil.copytree(files.directory, remaining, ignore=shutil.ignore_patterns(*names[3:]))
        files.directory.rename(files.workspace.directory / "before")
        remaining.rename(files.directory)
        ended = asyncio.create_task(next_event(watch, EventType.DISENGAGED))
        if is_restarted:
            await daemon.start()
        await eventually(lambda: watch.source is not None and watch.source.reason == "RemovalsHeld")
        for name in (*names[3:], "later"):
            files.put(name)
            await asyncio.sleep(0.3)  # a slow copy
        await eventually(lambda: "files#later" in watch.clusters)
        await source_is(client, SourceState.STREAMING, "")
        assert not ended.done()
        ended.cancel()
        assert len(watch.clusters) == 11


async def test_mounted_secret_volume_update_engages_new_clusters(files: Files) -> None:
    """A Secret volume: files are links into `..data`, which is a link that is replaced by a rename."""

    def publish(version: str, *names: str) -> None:
        data = files.directory / f"..{version}"
        data.mkdir()
        for name in names:
            write(data / name, files.config(name))
            link = files.directory / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        new = files.directory / "..data_tmp"
        new.symlink_to(data.name)
        new.rename(files.directory / "..data")

    publish("1", "alpha", "beta")
    async with following(files.daemon("kubeconfig-directory", files.directory)) as (_, watch):
        assert set(watch.clusters) == {"files#alpha", "files#beta"}
        publish("2", "alpha", "beta", "gamma")
        shutil.rmtree(files.directory / "..1")
        await until(watch, lambda seen: set(seen.clusters) == {"files#alpha", "files#beta", "files#gamma"})


async def test_restarted_daemon_restores_clusters_while_its_kubeconfig_directory_is_missing(files: Files) -> None:
    files.put("alpha")
    files.put("beta")
    stored = files.workspace.directory / "state"
    state = {"state_directory": str(stored)}
    async with following(files.daemon("kubeconfig-directory", files.directory, **state)) as (_, watch):
        before = dict(watch.clusters)
        await eventually(lambda: list(stored.glob("*.state")), within_s=_WITHIN_S)
    moved = files.directory.rename(files.workspace.directory / "moved")
    async with (
        following(files.daemon("kubeconfig-directory", files.directory, **state)) as (client, watch),
    ):
        assert {name: cluster.uid for name, cluster in watch.clusters.items()} == {
            name: cluster.uid for name, cluster in before.items()
        }
        await source_is(client, SourceState.STALE, "FileNotFound")
        moved.rename(files.directory)
        await source_is(client, SourceState.STREAMING, "")
        assert await user_of((await client.issue_kubeconfig("files#alpha")).kubeconfig) == "operator"


async def test_kind_clusters_are_engaged_and_disengaged_with_their_contexts(files: Files) -> None:
    kubeconfig = files.workspace.directory / "config"
    merged: dict[str, Any] = {"apiVersion": "v1", "kind": "Config", "current-context": "production"}

    def save(*names: str) -> None:
        configs = {name: files.config(name.removeprefix("kind-")) for name in names}
        for part in ("clusters", "users"):
            merged[part] = [{**config[part][0], "name": name} for name, config in configs.items()]
        merged["contexts"] = [{"name": name, "context": {"cluster": name, "user": name}} for name in configs]
        kubeconfig.write_text(yaml.safe_dump(merged))  # in place, as kind writes it

    save("production", "kind-alpha", "kind-beta")
    async with following(files.daemon("kind", kubeconfig)) as (client, watch):
        assert set(watch.clusters) == {"files#alpha", "files#beta"}
        assert await user_of((await client.issue_kubeconfig("files#beta")).kubeconfig) == "operator"
        save("production", "kind-alpha", "kind-beta", "kind-gamma")
        await until(watch, lambda seen: set(seen.clusters) == {"files#alpha", "files#beta", "files#gamma"})
        save("production", "kind-beta", "kind-gamma")
        await until(watch, lambda seen: set(seen.clusters) == {"files#beta", "files#gamma"})
        kubeconfig.write_text("")
        await source_is(client, SourceState.STALE, "FileMalformed")
        kubeconfig.unlink()
        await source_is(client, SourceState.STALE, "FileNotFound")
        assert set(watch.clusters) == {"files#beta", "files#gamma"}
