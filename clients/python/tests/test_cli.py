"""The command line as a process: output, messages and exit statuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo

from milo_discovery._gen import discovery_pb2 as pb

from .messages import cluster, disengaged, engaged, following, renewed, snapshot, updated
from .scripted_daemon import SILENCE, Refusal, ScriptedDaemon

COMMAND = str(Path(sys.executable).with_name("milo-discovery"))
# Printed in days and hours, so that the duration of the tests does not change it.
AGO = timedelta(days=2, hours=5, minutes=30)


def ago(span: timedelta = AGO) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) - span)
    return stamp


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[list[str]]:
        """The words of each line of stdout."""
        return [line.split() for line in self.out.splitlines()]


Command = Callable[..., asyncio.Future[Outcome]]


@asynccontextmanager
async def running(*arguments: str, address: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MILO_DISCOVERY_ADDRESS": address, **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def command(daemon: ScriptedDaemon):
    async def run(*arguments: str, **environment: str) -> Outcome:
        async with running(*arguments, address=daemon.address, **environment) as process:
            out, err = await process.communicate()
            assert process.returncode is not None
            return Outcome(process.returncode, out.decode(), err.decode())

    return run


ALPHA = cluster(
    "alpha",
    uid="u-1",
    endpoint="https://a",
    organization="acme",
    labels={"env": "prod", "b": "2"},
    engaged_at=ago(),
    incarnation="i",
)
BETA = cluster("beta", suspended=True, deletion_requested_at=ago(), connectivity=pb.Connectivity(state=3))
FLEET = pb.ListClustersResponse(clusters=[ALPHA, BETA], revision="7", total_size=2)


class TestList:
    async def test_list_prints_a_table(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("list", "-l", "env=prod", "--organization", "acme", "--organization", "initech")
        assert outcome.lines == [
            ["NAME", "ORGANIZATION", "STATE", "ENGAGED", "FOR"],
            ["alpha", "acme", "Ready", "2d5h"],
            ["beta", "-", "Terminating,Suspended,Unreachable", "-"],
        ]
        assert (outcome.status, outcome.err) == (0, "")
        wanted = pb.ClusterFilter(label_selector="env=prod", organizations=["acme", "initech"])
        assert daemon.requests == [pb.ListClustersRequest(filter=wanted)]

    async def test_list_wide_has_more_columns_and_no_headers_omits_the_header(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("list", "-o", "wide", "--no-headers")
        assert outcome.lines[0] == ["alpha", "acme", "Ready", "2d5h", "u-1", "https://a", "b=2,env=prod"]

    async def test_list_prints_names(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        assert (await command("list", "-o", "name")).out == "alpha\nbeta\n"

    async def test_list_json_and_yaml_are_equal(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET, FLEET]
        as_json = json.loads((await command("list", "-o", "json")).out)
        assert as_json == yaml.safe_load((await command("list", "-o", "yaml")).out)
        assert [each["name"] for each in as_json["clusters"]] == ["alpha", "beta"]

    async def test_list_without_clusters_prints_a_message_to_stderr(self, command, daemon):
        daemon.answers["ListClusters"] = [pb.ListClustersResponse(), pb.ListClustersResponse()]
        outcome = await command("list")
        assert (outcome.out, outcome.err) == ("", "milo-discovery: no clusters are engaged\n")
        assert (await command("list", "-o", "name")).err == ""

    async def test_list_without_a_match_names_the_filter(self, command, daemon):
        daemon.answers["ListClusters"] = [pb.ListClustersResponse()]
        outcome = await command("list", "-l", "env=dev", "--organization", "acme")
        assert outcome.err == (
            "milo-discovery: no engaged cluster matches selector 'env=dev' and organization 'acme'\n"
        )
        assert outcome.status == 0

    async def test_list_warns_of_a_stale_source(self, command, daemon):
        state = pb.SourceStatus.STATE_STALE
        stale = pb.SourceStatus(state=state, since=ago(), reason="Unauthorized", last_contact=ago())
        daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[ALPHA], source=stale)]
        outcome = await command("list")
        assert outcome.status == 7
        assert "may be out of date: the source is STALE since 20" in outcome.err
        assert "Milo last answered 2d5h ago (Unauthorized)" in outcome.err

    async def test_table_escapes_control_characters(self, command, daemon):
        evil = cluster("a", organization="\x1b[31mred\r\n")
        daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[evil])]
        outcome = await command("list", "--no-headers")
        assert outcome.out.startswith(r"a   \x1b[31mred\r\n   Ready")

    @pytest.mark.parametrize("form", ["table", "wide", "name", "json", "yaml"])
    async def test_output_has_no_c1_or_bidi_control_characters(self, command, daemon, form):
        evil = cluster("a\x9b31m", labels={"\u202e": "\U000e0001\x85"}, organization="\u2066")
        daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[evil])]
        out = (await command("list", "-o", form)).out
        assert all(each.isprintable() or each == "\n" for each in out)
        if form == "json":
            assert json.loads(out)["clusters"][0]["labels"] == {"\u202e": "\U000e0001\x85"}

    async def test_message_has_no_control_characters(self, command, daemon):
        daemon.answers["ListClusters"] = [Refusal(grpc.StatusCode.INTERNAL, "\x9b31m")]
        assert (await command("list")).err == "milo-discovery: \\x9b31m\n"

    async def test_json_labels_are_sorted(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        assert list(json.loads((await command("list", "-o", "json")).out)["clusters"][0]["labels"]) == ["b", "env"]

    async def test_full_stdout_is_one_line(self, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        process = await asyncio.create_subprocess_shell(
            f"{COMMAND} list --address {daemon.address} > /dev/full", stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert (process.returncode, err.decode()) == (
            1, "milo-discovery: cannot write to stdout: No space left on device\n"
        )  # fmt: skip


class TestGetAndExplain:
    REPORT = pb.GetClusterResponse(
        cluster=BETA,
        engagement=pb.Engagement(
            reason=pb.Engagement.REASON_NOT_READY, message="condition Ready is False", since=ago()
        ),
        transitions=[
            pb.Transition(type=pb.ClusterEvent.TYPE_ENGAGED, at=Timestamp(seconds=0)),
            pb.Transition(
                type=pb.ClusterEvent.TYPE_DISENGAGED,
                reason=pb.DISENGAGE_REASON_NOT_READY,
                message="condition Ready is False",
                at=Timestamp(seconds=60),
            ),
        ],
    )

    async def test_get_shows_whether_a_name_is_engaged(self, command, daemon):
        daemon.answers["GetCluster"] = [self.REPORT] * 4
        assert (await command("get", "beta")).lines == [
            ["NAME", "ENGAGED", "REASON", "SINCE", "MESSAGE"],
            ["beta", "no", "NOT_READY", "2d5h", "condition", "Ready", "is", "False"],
        ]
        assert "uid-of-beta" in (await command("get", "beta", "-o", "wide")).out
        assert (await command("get", "beta", "-o", "name")).out == "beta\n"
        as_json = json.loads((await command("get", "beta", "-o", "json")).out)
        assert as_json["engagement"]["reason"] == "REASON_NOT_READY"
        assert as_json["engagement"]["engaged"] is False

    async def test_explain_shows_reason_and_transitions(self, command, daemon):
        daemon.answers["GetCluster"] = [self.REPORT]
        outcome = await command("explain", "beta")
        first, second, *rest = outcome.out.splitlines()
        assert first.startswith("beta is not engaged: NOT_READY, since 20")
        assert first.endswith("Z (2d5h).")
        assert second == "  condition Ready is False"
        assert "Cluster, as last engaged:" in rest
        assert any("reachable" in line and "UNREACHABLE" in line for line in rest)
        assert any(line.startswith("  deletion       requested at 20") for line in rest)
        assert rest[-3:] == [
            "Last transitions:",
            "  1970-01-01T00:00:00Z   ENGAGED",
            "  1970-01-01T00:01:00Z   DISENGAGED   NOT_READY: condition Ready is False",
        ]

    async def test_get_and_explain_warn_of_a_stale_source(self, command, daemon):
        state = pb.SourceStatus.STATE_STALE
        stale = pb.SourceStatus(state=state, since=ago(), reason="Unauthorized", last_contact=ago(), name="core")
        report = pb.GetClusterResponse(engagement=self.REPORT.engagement, source=stale)
        daemon.answers["GetCluster"] = [report] * 3
        got = await command("get", "beta")
        assert got.status == 0
        assert "this may be out of date: source core is STALE since 20" in got.err
        explained = (await command("explain", "beta")).out.splitlines()
        assert explained[2].startswith("  This may be out of date: source core is STALE since 20")
        assert explained[2].endswith("Milo last answered 2d5h ago (Unauthorized).")
        as_json = json.loads((await command("get", "beta", "-o", "json")).out)
        assert as_json["source"]["state"] == "STATE_STALE"

    async def test_explain_prints_json_and_yaml(self, command, daemon):
        daemon.answers["GetCluster"] = [self.REPORT] * 2
        as_json = json.loads((await command("explain", "beta", "-o", "json")).out)
        assert as_json == yaml.safe_load((await command("explain", "beta", "-o", "yaml")).out)
        assert [each["type"] for each in as_json["transitions"]] == ["TYPE_ENGAGED", "TYPE_DISENGAGED"]

    async def test_unknown_name_is_answered_with_similar_names(self, command, daemon):
        daemon.answers["GetCluster"] = [Refusal(grpc.StatusCode.NOT_FOUND, "alpa was never seen")]
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("get", "alpa")
        assert (outcome.status, outcome.err) == (
            3, "milo-discovery: alpa was never seen; did you mean alpha?\n"
        )  # fmt: skip

    async def test_explain_of_an_engaged_cluster(self, command, daemon):
        engagement = pb.Engagement(engaged=True, reason=pb.Engagement.REASON_ENGAGED, since=ago())
        daemon.answers["GetCluster"] = [pb.GetClusterResponse(cluster=ALPHA, engagement=engagement)]
        outcome = await command("explain", "alpha")
        assert outcome.out.startswith("alpha is engaged, since 20")
        assert "Cluster:" in outcome.out
        assert "Last transitions" not in outcome.out

    async def test_explain_of_a_draining_cluster_names_pending_releases(self, command, daemon):
        deadline = Timestamp(seconds=60)
        draining = pb.Draining(reason=pb.DISENGAGE_REASON_MOVED, deadline=deadline, message="to b")
        waits_for = [
            pb.PendingRelease(subscriber="operator-0/1", caller="uid 7", connected=True, since=ago()),
            pb.PendingRelease(subscriber="operator-1/1", caller="uid 7"),
        ]
        daemon.answers["GetCluster"] = [
            pb.GetClusterResponse(
                cluster=cluster("alpha", draining=draining),
                engagement=pb.Engagement(engaged=True, reason=pb.Engagement.REASON_DRAINING, since=ago()),
                pending_releases=waits_for,
            )
        ]
        lines = (await command("explain", "alpha")).out.splitlines()
        assert lines[0].startswith("alpha is engaged: DRAINING, since 20")
        assert "  state          Draining" in lines
        assert "  draining       until 1970-01-01T00:01:00Z (MOVED: to b)" in lines
        first, second = lines[lines.index("Waiting for the release by:") + 1 :]
        assert first.startswith("  operator-0/1   uid 7   connected since 20")
        assert second == "  operator-1/1   uid 7   disconnected since an unknown time"

    async def test_explain_of_a_cluster_of_another_member_names_the_member(self, command, daemon):
        elsewhere = pb.Engagement(
            reason=pb.Engagement.REASON_UNASSIGNED, message="member b of the shard group owns it (view 3)"
        )
        daemon.answers["GetCluster"] = [pb.GetClusterResponse(engagement=elsewhere)]
        assert (await command("explain", "alpha")).out.splitlines()[:2] == [
            "alpha is not engaged: UNASSIGNED, since an unknown time.",
            "  member b of the shard group owns it (view 3)",
        ]

    async def test_explain_of_a_cluster_that_was_never_engaged(self, command, daemon):
        malformed = pb.Engagement(reason=pb.Engagement.REASON_MALFORMED, message="its name is no label")
        daemon.answers["GetCluster"] = [pb.GetClusterResponse(engagement=malformed)]
        outcome = await command("explain", "x")
        assert outcome.out.splitlines() == [
            "x is not engaged: MALFORMED, since an unknown time.",
            "  its name is no label",
            "  This daemon has never engaged it.",
        ]

    @pytest.mark.parametrize("verb", ["get", "explain"])
    async def test_unknown_name_exits_with_not_found(self, command, daemon, verb):
        daemon.answers["GetCluster"] = [Refusal(grpc.StatusCode.NOT_FOUND, "x was never seen")]
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command(verb, "x")
        assert (outcome.status, outcome.out, outcome.err) == (3, "", "milo-discovery: x was never seen\n")


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
    async def test_status_exits_with_the_health_of_the_daemon(self, command, daemon, synced, state, status):
        daemon.answers["GetServerInfo"] = [
            pb.GetServerInfoResponse(
                version="1.2",
                mode="project",
                synced=synced,
                started_at=ago(),
                source=pb.SourceStatus(state=state, since=ago()),
                counts=pb.FleetCounts(engaged=3, not_ready=2, unreachable=1, subscribers=4),
                credential_sources=[
                    pb.CredentialSource(name="main", type="exec", healthy=True, expires_at=ago(-AGO)),
                    pb.CredentialSource(name="spare", type="file", message="no such file"),
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

    async def test_status_prints_json(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(mode="single", synced=True)]
        assert json.loads((await command("status", "-o", "json")).out)["mode"] == "single"


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

    async def test_shards_lists_members_and_their_clusters(self, command, daemon):
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

    async def test_shards_exits_with_7_while_the_group_is_not_settled(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(sharding=pb.Sharding(group="dns", problem="late"))]
        outcome = await command("shards")
        assert outcome.status == 7
        assert ["problem", "late"] in outcome.lines
        assert "owns nothing at present" in outcome.out

    @pytest.mark.parametrize(
        ("count", "names", "text"),
        [(2, ["alpha", "beta"], "alpha, beta"), (7, ["alpha", "beta"], "alpha, beta, 5 more"), (7, [], "7 clusters")],
    )
    async def test_shards_names_draining_clusters(self, command, daemon, count, names, text):
        sharding = pb.Sharding(group="dns", settled=True, draining=names)
        counts = pb.FleetCounts(draining=count)
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(sharding=sharding, counts=counts)]
        [line] = [line for line in (await command("shards")).lines if line and line[0] == "draining"]
        assert " ".join(line[1:]) == text

    async def test_shards_reports_a_daemon_without_a_group(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse()]
        outcome = await command("shards")
        assert (outcome.status, outcome.out) == (0, "")

    async def test_shards_prints_json(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(sharding=self.GROUP)]
        found = json.loads((await command("shards", "-o", "json")).out)
        assert (found["group"], found["validFor"], found["members"][1]["weight"]) == ("dns", "12s", 2.5)


class TestVersionAndCompletion:
    async def test_version_prints_client_and_daemon(self, command, daemon):
        daemon.answers["GetServerInfo"] = [pb.GetServerInfoResponse(version="1.2")] * 2
        assert [line[0] for line in (await command("version")).lines] == ["client:", "daemon:"]
        assert json.loads((await command("version", "-o", "json")).out)["daemon"] == "1.2"

    async def test_version_without_a_daemon_prints_the_clients(self, command, daemon):
        await daemon.stop()
        outcome = await command("version")
        assert (outcome.status, [line[0] for line in outcome.lines]) == (5, ["client:"])
        assert (await command("version", "--client")).status == 0

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    async def test_completion_script_names_its_variable(self, command, shell):
        assert "_MILO_DISCOVERY_COMPLETE" in (await command("completion", shell)).out

    async def test_completion_completes_commands_and_cluster_names(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]

        async def complete(line: str) -> list[str]:
            words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
            outcome = await command(_MILO_DISCOVERY_COMPLETE="bash_complete", **words)
            return [each.partition(",")[2] for each in outcome.out.split()]

        assert await complete("milo-discovery ex") == ["explain"]
        assert await complete("milo-discovery get al") == ["alpha"]

    async def test_completion_without_a_daemon_is_silent(self, command, daemon):
        await daemon.stop()
        words = {"COMP_WORDS": "milo-discovery get al", "COMP_CWORD": "2"}
        outcome = await command(_MILO_DISCOVERY_COMPLETE="bash_complete", **words)
        assert (outcome.out.strip(), outcome.err) == ("", "")


class TestWatch:
    async def test_watch_prints_events_to_stdout_and_messages_to_stderr(self, command, daemon):
        watching = asyncio.create_task(command("watch", "--once"))
        (await daemon.stream()).send(snapshot("1", engaged(ALPHA), engaged("beta")))
        outcome = await watching
        assert outcome.lines == [
            ["EVENT", "NAME", "ORGANIZATION", "DETAILS"],
            ["ENGAGED", "alpha", "acme", "Ready"],
            ["ENGAGED", "beta", "-", "Ready"],
        ]
        assert (outcome.status, outcome.err) == (0, "milo-discovery: synced: 2 clusters\n")

    async def test_watch_line_for_each_event_type(self, daemon):
        async with running("watch", "--no-headers", address=daemon.address) as process:
            stream = await daemon.stream()
            stream.send(
                snapshot("1", engaged(ALPHA)),
                following(
                    "1",
                    "2",
                    updated(cluster("alpha", uid="u-1", labels={"b": "3", "new": ""}, suspended=True)),
                    updated(cluster("alpha", uid="u-1", labels={"b": "3", "new": ""}, deletion_requested_at=ago())),
                    renewed("alpha", "secret"),
                    disengaged("alpha", pb.DISENGAGE_REASON_DELETED, "gone"),
                ),
            )
            lines = [(await process.stdout.readline()).decode().split() for _ in range(5)]
            assert lines == [
                ["ENGAGED", "alpha", "acme", "Ready"],
                ["UPDATED", "alpha", "-", "endpoint", "-,", "organization", "-,", "suspended,", "label", "b=3,", "…"],
                ["UPDATED", "alpha", "-", "deletion", "requested,", "resumed"],
                ["KUBECONFIG", "alpha", "-", "until", "-"],
                ["DISENGAGED", "alpha", "-", "DELETED:", "gone"],
            ]

    async def test_watch_reports_a_reconnect_to_stderr(self, daemon):
        async with running("watch", "-o", "name", address=daemon.address) as process:
            stream = await daemon.stream()
            stream.send(snapshot("1", engaged("a")))
            assert await process.stdout.readline() == b"a\n"
            assert await process.stderr.readline() == b"milo-discovery: synced: 1 cluster\n"
            stream.end(Refusal(grpc.StatusCode.UNAVAILABLE, "shutting down"))
            (await daemon.stream()).send(following("1", "2", engaged("b")))
            assert await process.stderr.readline() == (b"milo-discovery: connection lost: shutting down; retrying\n")
            assert await process.stderr.readline() == b"milo-discovery: reconnected, stream resumed\n"
            assert await process.stdout.readline() == b"b\n"
            await daemon.stop()
            await daemon.start()
            (await daemon.stream()).send(snapshot("z", engaged(cluster("a", incarnation="new")), engaged("b")))
            assert b"connection lost" in await process.stderr.readline()
            assert await process.stderr.readline() == b"milo-discovery: reconnected, receiving a snapshot\n"
            assert await process.stderr.readline() == b"milo-discovery: synced: 2 clusters\n"

    @pytest.mark.parametrize("form", ["json", "yaml"])
    async def test_watch_prints_one_document_per_event(self, command, daemon, form):
        watching = asyncio.create_task(command("watch", "--once", "-o", form, "--timestamps"))
        (await daemon.stream()).send(snapshot("1", engaged("a"), engaged("b")))
        out = (await watching).out
        events = list(yaml.safe_load_all(out)) if form == "yaml" else [json.loads(line) for line in out.splitlines()]
        assert [(each["type"], each["cluster"]["name"]) for each in events] == [
            ("TYPE_ENGAGED", "a"),
            ("TYPE_ENGAGED", "b"),
        ]
        assert all(each["receivedAt"].endswith("Z") for each in events)

    async def test_watch_timestamps_and_wide_lines(self, command, daemon):
        watching = asyncio.create_task(command("watch", "--once", "-o", "wide", "--timestamps"))
        (await daemon.stream()).send(snapshot("1", engaged(ALPHA)))
        headers, line = (await watching).lines
        assert headers == ["TIME", "EVENT", "NAME", "ORGANIZATION", "UID", "ENDPOINT", "LABELS", "DETAILS"]
        assert line[1:7] == ["ENGAGED", "alpha", "acme", "u-1", "https://a", "b=2,env=prod"]
        assert datetime.fromisoformat(line[0]).tzinfo is UTC

    async def test_watch_lines_fit_into_120_columns(self, daemon):
        async with running("watch", "--timestamps", address=daemon.address) as process:
            stream = await daemon.stream()
            long = cluster("n" * 30, organization="o" * 20, deletion_message="m" * 200, endpoint="https://" + "e" * 90)
            stream.send(snapshot("1", engaged(long)), following("1", "2", disengaged(long, message="d" * 200)))
            lines = [(await process.stdout.readline()).decode().rstrip("\n") for _ in range(3)]
        assert [len(line) for line in lines[1:]] == [120, 120]
        assert "…" in lines[1]

    async def test_watch_interrupt_prints_nothing(self, daemon):
        async with running("watch", "-o", "name", address=daemon.address) as process:
            (await daemon.stream()).send(snapshot("1", engaged("a")))
            await process.stdout.readline()
            await process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
            assert (process.returncode, err.strip()) == (130, b"")

    async def test_watch_exits_when_an_idle_pipe_loses_its_reader(self, daemon):
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            COMMAND, "watch", "--address", daemon.address, "-o", "name", stdout=writing, stderr=asyncio.subprocess.PIPE
        )
        os.close(writing)
        (await daemon.stream()).send(snapshot("1", engaged("a")))
        assert await process.stderr.readline() == b"milo-discovery: synced: 1 cluster\n"
        os.close(reading)
        _, err = await process.communicate()
        assert (process.returncode, err) == (-signal.SIGPIPE, b"")

    async def test_watch_exits_when_the_reader_closes_the_pipe(self, daemon):
        process = await asyncio.create_subprocess_shell(
            f"{COMMAND} watch --address {daemon.address} -o name | head -1", stdout=-1, stderr=-1
        )
        stream = await daemon.stream()
        stream.send(snapshot("1", *(engaged(f"c{n}") for n in range(5000))))
        assert (await process.communicate())[0] == b"c0\n"
        await stream.ended.wait()

    async def test_watch_timeout_before_the_first_view(self, command, daemon):
        watching = asyncio.create_task(command("watch", "--timeout", "1s"))
        (await daemon.stream()).send(snapshot("1", engaged("a"), synced=False))
        outcome = await watching
        assert (outcome.status, outcome.out) == (6, "")
        assert outcome.err.startswith("milo-discovery: no complete view from unix:")

    async def test_watch_timeout_without_a_daemon_is_no_connection(self, command, daemon):
        await daemon.stop()
        outcome = await command("watch", "--timeout", "1s")
        assert outcome.status == 5
        first, last = outcome.err.splitlines()
        assert "No such file or directory" in first
        assert first.endswith("; retrying")
        assert last.startswith("milo-discovery: cannot connect to the daemon at unix:")


class TestErrors:
    async def test_invalid_selector_error_names_the_option(self, command, daemon):
        violation = BadRequest.FieldViolation(field="filter.label_selector", description="unexpected ','")
        refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad", (BadRequest(field_violations=[violation]),))
        daemon.answers["ListClusters"] = [refusal]
        outcome = await command("list", "-l", ",")
        assert (outcome.status, outcome.err) == (2, "milo-discovery: --selector: unexpected ','\n")

    @pytest.mark.parametrize(
        ("refusal", "status"),
        [
            (Refusal(grpc.StatusCode.PERMISSION_DENIED, "no"), 4),
            (Refusal(grpc.StatusCode.UNAUTHENTICATED, "no"), 4),
            (Refusal(grpc.StatusCode.UNAVAILABLE, "no", (ErrorInfo(reason="NOT_SYNCED"),)), 7),
            (Refusal(grpc.StatusCode.INTERNAL, "no"), 1),
        ],
        ids=lambda value: value.code.name if isinstance(value, Refusal) else None,
    )
    async def test_exit_status_of_each_grpc_status(self, command, daemon, refusal, status):
        daemon.answers["ListClusters"] = [refusal]
        outcome = await command("list")
        assert (outcome.status, outcome.out, outcome.err) == (status, "", "milo-discovery: no\n")

    async def test_connection_error_names_the_address_and_the_option(self, command, daemon):
        await daemon.stop()
        outcome = await command("list")
        assert outcome.status == 5
        assert outcome.err == (
            f"milo-discovery: cannot connect to the daemon at {daemon.address}: No such file or directory "
            "(is milo-discoveryd running? set its address with --address or MILO_DISCOVERY_ADDRESS)\n"
        )

    async def test_unanswered_call_exits_with_timeout(self, command, daemon):
        daemon.answers["ListClusters"] = [SILENCE]
        outcome = await command("list", "--timeout", "50ms")
        assert outcome.status == 6
        assert outcome.err == f"milo-discovery: no answer from {daemon.address} within --timeout\n"

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["list", "--address", "nowhere"], "neither unix:///path/to/socket nor HOST:PORT"),
            (["list", "--timeout", "soon"], "'soon' is not a duration above zero, such as 500ms, 10s or 2m"),
            (["list", "--timeout", "0s"], "'0s' is not a duration above zero"),
            (["list", "-o", "xml"], "'xml' is not one of 'table', 'wide', 'json', 'yaml', 'name'"),
            (["get"], "Missing argument 'NAME'"),
            (["wacht"], "No such command 'wacht'; did you mean watch?"),
            (["credential"], "Missing argument 'NAME'"),
            (["credential", "alpha", "--cluster", "alpha"], "are the same"),
            (["kubeconfig", "alpha", "--force"], "--force needs -w"),
        ],
    )
    async def test_usage_error_names_the_problem(self, command, arguments, complaint):
        outcome = await command(*arguments)
        assert outcome.status == 2
        assert complaint in outcome.err
        assert "Traceback" not in outcome.err

    async def test_help_needs_no_daemon(self, command):
        outcome = await command("--help")
        assert outcome.status == 0
        commands = [
            "completion",
            "credential",
            "explain",
            "get",
            "kubeconfig",
            "list",
            "publish",
            "shards",
            "status",
            "sync",
            "version",
            "watch",
        ]
        assert [line[0] for line in outcome.lines[-len(commands) :]] == commands
        assert (await command("--version")).out.startswith("milo-discovery, version 0.")

    async def test_address_and_timeout_before_the_command_name(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET, SILENCE]
        before = ("--address", daemon.address, "--timeout", "200ms")
        elsewhere = {"MILO_DISCOVERY_ADDRESS": "unix:///elsewhere"}
        assert (await command(*before, "list", "--timeout", "10s", "-o", "name", **elsewhere)).out == "alpha\nbeta\n"
        assert (await command(*before, "list", **elsewhere)).status == 6

    async def test_option_after_the_command_name_takes_precedence(self, command):
        outcome = await command("--address", "unix:///before", "list", "--address", "unix:///after")
        assert "cannot connect to the daemon at unix:///after" in outcome.err

    async def test_help_loads_neither_grpc_nor_asyncio(self):
        script = (
            "import sys; from milo_discovery.cli import command\n"
            "try: command.main(['watch', '--help'])\n"
            "except SystemExit: print([m for m in ('grpc', 'asyncio', 'google.protobuf') if m in sys.modules])"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert out.decode().splitlines()[-1] == "[]"
