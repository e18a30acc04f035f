"""Tests of the commands `status`, `shards`, `version` and `completion`."""

from __future__ import annotations

import json

import pytest
from google.protobuf.duration_pb2 import Duration

from milo_discovery.v1 import discovery_pb2 as pb

from .command_process import AGO, FLEET, ago


class TestStatus:
    @pytest.mark.parametrize(
        ("synced", "state", "status"),
        [
            (True, pb.SourceStatus.STATE_STREAMING, 0),
            (True, pb.SourceStatus.STATE_CATCHING_UP, 0),
            (True, pb.SourceStatus.STATE_STALE, 7),
            (False, pb.SourceStatus.STATE_CATCHING_UP, 7),
        ],
    )
    async def test_status_exits_with_7_if_the_source_is_stale_or_the_daemon_is_not_synced(
        self, command, daemon, synced, state, status
    ):
        daemon.answers["GetServerInfo"] = [
            pb.GetServerInfoResponse(
                version="1.2",
                mode="project",
                synced=synced,
                started_at=ago(),
                source=pb.SourceStatus(state=state, since=ago()),
                counts=pb.FleetCounts(engaged=3, not_ready=2, unreachable=1, subscribers=4),
                credential_issuers=[
                    pb.CredentialIssuer(name="main", type="exec", healthy=True, expires_at=ago(-AGO)),
                    pb.CredentialIssuer(name="spare", type="file", message="no such file"),
                ],
            )
        ]
        outcome = await command("status")
        assert outcome.status == status
        summary = {line[0]: " ".join(line[1:]) for line in outcome.lines}
        assert summary["daemon"] == "milo-discoveryd 1.2, mode project, up 2d5h"
        assert summary["source"].startswith(pb.SourceStatus.State.Name(state).removeprefix("STATE_"))
        assert (
            summary["clusters"]
            == "3 engaged, 2 not ready, 0 outside the selector, 0 malformed, 1 unreachable, 0 draining"
        )
        assert summary["subscribers"] == "4"
        assert "main (exec), healthy, its credential expires in 2d5h" in outcome.out
        assert "spare (file), unhealthy: no such file" in outcome.out

    async def test_status_of_sharded_daemon_counts_unassigned_clusters(self, command, daemon):
        counts, sharding = pb.FleetCounts(engaged=3, unassigned=5), pb.Sharding(group="dns", member="dns-0")
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(synced=True, counts=counts, sharding=sharding)]
        [clusters] = [line for line in (await command("status")).lines if line[0] == "clusters"]
        assert clusters[-2:] == ["5", "unassigned"]


class TestShards:
    GROUP = pb.Sharding(
        group="dns",
        member="dns-0",
        view=3,
        settled=True,
        valid_for=Duration(seconds=12),
        members=[
            pb.ShardMember(name="dns-0", weight=1, in_view=True, alive=True, acknowledged_view=3, clusters=7),
            pb.ShardMember(name="dns-1", weight=2.5, in_view=True, leaving=True, acknowledged_view=2, clusters=5),
            pb.ShardMember(name="dns-2", weight=1, alive=True, acknowledged_view=3),
        ],
    )

    async def test_shards_command_lists_members_and_their_numbers_of_clusters(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(sharding=self.GROUP)]
        outcome = await command("shards")
        assert outcome.status == 0
        assert [" ".join(line) for line in outcome.lines if line] == [
            "group dns",
            "member dns-0, owns its share",
            "view 3, settled",
            "MEMBER WEIGHT CLUSTERS ACKNOWLEDGED STATE",
            "dns-0 1 7 3 member",
            "dns-1 2.5 5 2 not running, leaving",
            "dns-2 1 0 3 not in the view",
        ]

    async def test_shards_command_exits_with_7_while_the_group_is_not_settled(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(sharding=pb.Sharding(group="dns", problem="late"))]
        outcome = await command("shards")
        assert outcome.status == 7
        assert ["problem", "late"] in outcome.lines
        assert "currently owns no clusters" in outcome.out

    @pytest.mark.parametrize(
        ("count", "names", "text"),
        [(2, ["alpha", "beta"], "alpha, beta"), (7, ["alpha", "beta"], "alpha, beta, 5 more"), (7, [], "7 clusters")],
    )
    async def test_shards_command_lists_draining_clusters(self, command, daemon, count, names, text):
        sharding = pb.Sharding(group="dns", settled=True, draining=names)
        counts = pb.FleetCounts(draining=count)
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(sharding=sharding, counts=counts)]
        [line] = [line for line in (await command("shards")).lines if line and line[0] == "draining"]
        assert " ".join(line[1:]) == text

    async def test_shards_command_prints_nothing_to_stdout_if_the_daemon_has_no_shard_group(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse()]
        outcome = await command("shards")
        assert (outcome.status, outcome.out) == (0, "")


class TestVersionAndCompletion:
    async def test_version_prints_client_and_daemon_versions(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(version="1.2")] * 2
        assert [line[0] for line in (await command("version")).lines] == ["client:", "daemon:"]
        assert json.loads((await command("version", "-o", "json")).out)["daemon"] == "1.2"

    async def test_version_without_a_daemon_prints_the_client_version(self, command, daemon):
        await daemon.stop()
        outcome = await command("version")
        assert (outcome.status, [line[0] for line in outcome.lines]) == (5, ["client:"])
        assert (await command("version", "--client")).status == 0

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    async def test_completion_script_contains_its_environment_variable(self, command, shell):
        assert "_MILO_DISCOVERY_COMPLETE" in (await command("completion", shell)).out

    async def test_completion_completes_commands_and_cluster_names(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]

        async def complete(line: str) -> list[str]:
            words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
            outcome = await command(_MILO_DISCOVERY_COMPLETE="bash_complete", **words)
            return [completion.partition(",")[2] for completion in outcome.out.split()]

        assert await complete("milo-discovery ex") == ["explain"]
        assert await complete("milo-discovery explain al") == ["alpha"]

    async def test_completion_without_a_daemon_is_silent(self, command, daemon):
        await daemon.stop()
        words = {"COMP_WORDS": "milo-discovery explain al", "COMP_CWORD": "2"}
        outcome = await command(_MILO_DISCOVERY_COMPLETE="bash_complete", **words)
        assert (outcome.out.strip(), outcome.err) == ("", "")
