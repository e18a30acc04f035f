"""Configuration files that are correct, and whose rules need settings that take effect at the next start."""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
import yaml

from milo_discovery.v1 import discovery_pb2 as pb
from tests.end_to_end.process.conftest import Workspace
from tests.support.eventually import LIMIT_S, eventually
from tests.support.forked_command import forked
from tests.support.ports import free_port

CLUSTERS = 10


def settings(
    workspace: Workspace,
    port: int,
    *,
    source: str = "eu",
    listener: str = "api",
    issuer: str = "own",
    discovery: str = "kubeconfig",
) -> dict[str, Any]:
    """Return settings whose only rule names the source, the listener and the issuer."""
    kubeconfig = str(workspace.directory / discovery)
    return {
        "sources": [
            {
                "name": source,
                "kind": "project",
                "discovery_kubeconfig": kubeconfig,
                "project_kubeconfig": str(workspace.kubeconfig),
            }
        ],
        "discovery_kubeconfig": None,
        "listen": [{"address": workspace.address, "name": listener}],
        "http_listen": f"127.0.0.1:{port}",
        "kubeconfigs": {
            "issuers": [{"name": issuer, "type": "project-kubeconfig", "share_discovery_identity": True}],
        },
        "rights": [
            {
                "name": "operators",
                "who": {"listener": listener},
                "clusters": {"sources": [source]},
                "kubeconfigs": True,
                "issuers": [issuer],
            }
        ],
    }


def replace_file(workspace: Workspace, changed: Mapping[str, Any]) -> None:
    config = workspace.directory / "config.yaml"
    written = {name: value for name, value in changed.items() if value is not None}
    kept = {"connectivity": {"interval": "off"}}
    config.with_suffix(".new").write_text(yaml.safe_dump(kept | written))
    config.with_suffix(".new").rename(config)


async def status(port: int) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/?json") as response:
        found: dict[str, Any] = await response.json()
        return found


async def is_current(port: int) -> None:
    """Wait until the daemon has read the file, and its rules are in force."""
    async with asyncio.timeout(LIMIT_S):
        while (await status(port))["configuration"]["state"] != "current":
            pass


@pytest.mark.parametrize(
    "renamed",
    [
        pytest.param({"source": "europe"}, id="source"),
        pytest.param({"listener": "grpc"}, id="listener"),
        pytest.param({"issuer": "workload"}, id="issuer"),
    ],
)
async def test_rename_in_settings_and_rule_ends_nothing_and_waits_for_the_restart(
    workspace: Workspace, renamed: dict[str, str]
) -> None:
    names, port = workspace.sandbox.populate(CLUSTERS), free_port()
    ((kind, name),) = renamed.items()
    file = settings(workspace, port)
    daemon = workspace.daemon(**file)
    daemon.address = workspace.address
    async with daemon:
        await daemon.start()
        async with workspace.stream(pb.WatchClustersRequest(include_kubeconfigs=True)) as stream:
            seen = [event for batch in await stream.until_synced() for event in batch.events]
            assert {event.cluster.name for event in seen} == {f"eu#{name}" for name in names}

            replace_file(workspace, settings(workspace, port, **renamed))
            await eventually(lambda: daemon.events("changed rights wait for the restart"))
            workspace.sandbox.projects.create("later", ready=True)
            events: list[pb.ClusterEvent] = []
            while not any(event.HasField("kubeconfig") and event.cluster.name == "eu#later" for event in events):
                events += (await stream.batch()).events
            assert {event.cluster.name for event in events if event.type == pb.ClusterEvent.TYPE_ENGAGED} == {
                "eu#later"
            }
            assert all(event.type != pb.ClusterEvent.TYPE_DISENGAGED for event in events)

            found = (await status(port))["configuration"]
            assert found["state"] == "waiting"
            assert f'"{name}" is not the name of' in str(found["problems"])
            (line,) = daemon.events("changed rights wait for the restart")
            assert (line["level"], line["problems"]) == ("warning", found["problems"])
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/metrics") as response,
            ):
                metrics = await response.text()
            assert '\nmilo_discoveryd_config_reloads_total{result="waiting"} 1.0' in metrics
            assert "\nmilo_discoveryd_config_last_reload_successful 0.0" in metrics
            _, out, _ = await forked(
                "milo-discoveryd", ("check", "--config", str(workspace.directory / "config.yaml")), {}
            )
            (waiting,) = [line for line in out.splitlines() if "waits for the restart" in line]
            assert waiting.startswith(f"warn  rights: the daemon at http://127.0.0.1:{port} waits for the restart")
            assert f'"{name}"' in waiting

            replace_file(workspace, file)  # the change is reverted
            await is_current(port)
        await daemon.terminate()
        replace_file(workspace, settings(workspace, port, **renamed))
        await daemon.start()
        prefix = name if kind == "source" else "eu"
        async with workspace.stream() as stream:
            seen = [event for batch in await stream.until_synced() for event in batch.events]
            assert {event.cluster.name for event in seen} == {f"{prefix}#{name}" for name in (*names, "later")}


async def test_changed_rule_that_names_a_changed_source_waits_for_the_restart(workspace: Workspace) -> None:
    """A source's name may stand for other clusters in the new file, which the rule is meant for."""
    (name,), port = workspace.sandbox.populate(1), free_port()
    daemon = workspace.daemon(**settings(workspace, port))
    daemon.address = workspace.address
    async with daemon:
        await daemon.start()
        workspace.sandbox.write_kubeconfig(workspace.directory / "another")
        changed = settings(workspace, port, discovery="another")
        changed["rights"].append({"name": "everybody", "who": "everybody", "clusters": {"names": ["eu#*"]}})
        replace_file(workspace, changed)
        await eventually(lambda: daemon.events("changed rights wait for the restart"))
        (problem,) = (await status(port))["configuration"]["problems"]
        assert problem == 'rights[1].clusters.sources: "eu" runs with settings that differ from those in the file'

        del changed["rights"][1]  # what does not concern the changed source applies at once
        changed["rights"][0]["streams"] = 3
        changed["rights"][0]["clusters"] = {"names": [f"eu#{name}"]}
        changed["sources"][0]["discovery_kubeconfig"] = str(workspace.kubeconfig)
        replace_file(workspace, changed)
        await is_current(port)
