"""Authorization rules of a running daemon: caller identification, reload, the audit log, and what a caller with limited
rights can learn."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.server.calls.handlers import NAME
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.project_server import Projects, ProjectServer
from tests.end_to_end.process.streams import Stream
from tests.end_to_end.process.watching import until
from tests.support.eventually import eventually
from tests.support.forked_command import forked


async def events(stream: Stream) -> list[str]:
    """Return the events of the next batch that has any."""
    while not (batch := await stream.batch()).events:
        pass
    return [f"{pb.ClusterEvent.Type.Name(event.type)[5:]} {event.cluster.name}" for event in batch.events]


def write_rules(workspace: Workspace, *rules: object) -> None:
    """Replace the rules in the configuration file of a running daemon."""
    config = workspace.directory / "config.yaml"
    written = yaml.safe_load(config.read_text()) | {"rights": list(rules)}
    config.with_suffix(".new").write_text(yaml.safe_dump(written))
    config.with_suffix(".new").rename(config)


@pytest.mark.parametrize("mode", ["project", "project-control-plane"])
async def test_rules_identify_process_users_and_are_reloaded_during_streams(workspace: Workspace, mode: str) -> None:
    first, second, third = workspace.sandbox.populate(3)
    audit = workspace.directory / "audit.jsonl"
    ours: dict[str, Any] = {"name": "ours", "who": {"uid": os.getuid()}, "clusters": {"names": [first, second]}}
    settings = {
        "mode": mode,
        "listen": [{"address": workspace.address, "name": "api", "peer_credentials": True}],
        "audit": {"file": str(audit)},
    }
    daemon = workspace.daemon(**settings, rights=[{"name": "other", "who": {"uid": 4242}, "clusters": "all"}, ours])
    daemon.address = workspace.address
    async with daemon:
        await daemon.start()
        async with workspace.stream() as stream:
            seen = {event.cluster.name for batch in await stream.until_synced() for event in batch.events}
            assert seen == {first, second}

            write_rules(workspace, {**ours, "clusters": {"names": [second, third]}})
            assert sorted(await events(stream)) == [f"DISENGAGED {first}", f"ENGAGED {third}"]

            write_rules(workspace, {**ours, "clusters": "som"})
            await daemon.wait_for_output("configuration rejected")
            moved = audit.rename(workspace.directory / "audit.1")
            write_rules(workspace, {**ours, "clusters": {"names": [first]}})
            daemon.signal(signal.SIGHUP)
            assert sorted(await events(stream)) == sorted(
                [f"ENGAGED {first}", f"DISENGAGED {second}", f"DISENGAGED {third}"]
            )
        await eventually(audit.exists)
        assert daemon.is_running
    before, after = written(moved), written(audit)
    assert [line["event"] for line in before] == ["rights changed", "rights kept"]
    assert (before[0]["rules"], before[0]["removed"], before[0]["changed"]) == (["ours"], ["other"], ["ours"])
    assert '[0].clusters: "som" must be' in str(before[1]["problems"])
    assert [line["event"] for line in [*before, *after]].count("rights changed") == 2
    assert audit.stat().st_mode & 0o777 == 0o600


def written(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_kubeconfig_gets_no_credential_after_its_rule_sets_or_changes_the_impersonated_user(
    workspace: Workspace,
) -> None:
    names, audit = workspace.sandbox.populate(2), workspace.directory / "audit.jsonl"
    issuer = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}
    rule: dict[str, Any] = {"name": "ours", "who": "everybody", "clusters": "all", "kubeconfigs": True}
    settings = {"kubeconfigs": {"issuers": [issuer]}, "audit": {"file": str(audit)}, "rights": [rule]}

    async def users(name: str = "") -> list[dict[str, Any]]:
        """Return the user of a new kubeconfig for each cluster, once all impersonate this user."""
        while True:
            made = [
                await forked("milo-discovery", ("--address", workspace.address, "kubeconfig", cluster), {})
                for cluster in names
            ]
            found = [json.loads(out)["users"][0]["user"] for _, out, _ in made]
            if all(user.get("as", "") == name for user in found):
                return found

    async def credential(user: dict[str, Any]) -> tuple[int, str, str]:
        """Run the plugin as a client of the kubeconfig does."""
        variables = {variable["name"]: variable["value"] for variable in user["exec"]["env"]}
        return await forked("milo-discovery", user["exec"]["args"], variables)

    async with workspace.daemon(**settings) as daemon:
        await daemon.start()
        async with workspace.client() as client, client.watch() as watch:
            await until(watch, lambda seen: seen.clusters.keys() >= {*names})
        outdated = await daemon.during(users())
        for user in outdated:
            status, out, _ = await credential(user)
            assert (status, bool(json.loads(out)["status"]["token"])) == (0, True)
        for acting in ("ann", "bob"):
            write_rules(workspace, {**rule, "as": {"user": acting}})
            current = await daemon.during(users(acting))
            for user in outdated:
                status, out, err = await credential(user)
                assert (status, out) == (1, "")
                assert f"impersonate {acting}" in err
            for user in current:
                assert (await credential(user))[0] == 0
            outdated += current
    issued = [line for line in written(audit) if line["event"] == "kubeconfig issued"]
    assert {line.get("act_as") for line in issued} == {None, "ann", "bob"}


async def test_caller_limited_to_one_source_learns_neither_name_nor_state_of_another_source(
    workspace: Workspace,
) -> None:
    servers = {"open": ProjectServer(Projects(["shop"])), "hidden": ProjectServer(Projects(["treasury"]))}
    operator, token = f"unix://{workspace.directory}/operator.sock", workspace.directory / "token"
    token.write_text(workspace.sandbox.token())
    issuer: dict[str, Any] = {"type": "token-file", "path": str(token)}
    limited = {"who": {"listener": "operator"}, "clusters": {"sources": ["open"]}, "kubeconfigs": True}
    settings: dict[str, Any] = {
        "discovery_kubeconfig": None,
        "plain_loopback": True,
        "watch": {"streaming_lists": "off"},
        "kubeconfigs": {"issuers": [issuer | {"name": name, "sources": [name]} for name in servers]},
        "listen": [{"name": "all", "address": workspace.address}, {"name": "operator", "address": operator}],
        "rights": [{"name": "all", "who": {"listener": "all"}, "clusters": "all"}, {"name": "limited", **limited}],
    }
    async with servers["open"].listening(), servers["hidden"].listening():
        sources = [server.source(name, workspace.directory) for name, server in servers.items()]
        daemon = workspace.daemon(sources=sources, **settings)
        daemon.address = workspace.address
        await servers["hidden"].stop()
        async with daemon:
            await daemon.start()
            while_away = await daemon.during(answers_about_hidden_source(operator))
            await servers["hidden"].start()
            async with workspace.client() as client, client.watch() as watch:
                await daemon.during(until(watch, lambda seen: "hidden#treasury" in seen.clusters))
            assert await daemon.during(answers_about_hidden_source(operator)) == while_away


async def answers_about_hidden_source(address: str) -> list[str]:
    """Return the responses to a caller that guesses the name of the hidden source, with that name replaced."""

    async def run(*arguments: str) -> str:
        status, out, err = await forked("milo-discovery", ("--address", address, *arguments), {})
        return f"exit status {status}: {out}{err}"

    async def check(source: str) -> str:
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service=f"{NAME}/{source}")
        watched = await stub.Watch(request).read()
        try:
            return f"{watched}{await stub.Check(request)}"
        except grpc.aio.AioRpcError as error:
            return f"{watched}{error.code()}: {error.details()}"

    for arguments in (("watch", "--once", "-o", "json"), ("list", "-o", "json"), ("status",)):
        answer = await run(*arguments)
        assert answer.startswith("exit status 0")
        assert "hidden" not in answer
    async with grpc.aio.insecure_channel(address) as channel:
        assert "NOT_SERVING" not in await check("open")
        hidden, absent = [
            [
                answer.replace(name, "another")
                for answer in (
                    await run("get", f"{name}#treasury"),
                    await run("kubeconfig", f"{name}#treasury"),
                    await run("list", "--source", name),
                    await check(name),
                )
            ]
            for name in ("hidden", "absent")
        ]
    assert hidden == absent
    return hidden
