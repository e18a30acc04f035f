"""Tests of the commands `list` and `explain`."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from clients.python.tests.messages import cluster
from clients.python.tests.scripted_daemon import Refusal
from milo_discovery.v1 import discovery_pb2 as pb

from .command_process import ALPHA, BETA, COMMAND, FLEET, ago


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

    async def test_list_prints_wide_columns_without_a_header_row(self, command, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("list", "-o", "wide", "--no-headers")
        assert outcome.lines[0] == ["alpha", "acme", "Ready", "2d5h", "u-1", "https://a", "b=2,env=prod"]

    async def test_list_without_a_match_prints_the_filter(self, command, daemon):
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
        assert "last response from Milo 2d5h ago (Unauthorized)" in outcome.err

    async def test_table_escapes_control_characters(self, command, daemon):
        evil = cluster("a", organization="\x1b[31mred\r\n")
        daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[evil])]
        outcome = await command("list", "--no-headers")
        assert outcome.out.startswith(r"a   \x1b[31mred\r\n   Ready")

    @pytest.mark.parametrize("form", ["table", "wide", "name", "json", "yaml"])
    async def test_list_output_has_no_c1_or_bidi_control_characters(self, command, daemon, form):
        evil = cluster("a\x9b31m", labels={"\u202e": "\U000e0001\x85"}, organization="\u2066")
        daemon.answers["ListClusters"] = [pb.ListClustersResponse(clusters=[evil])]
        out = (await command("list", "-o", form)).out
        assert all(character.isprintable() or character == "\n" for character in out)
        if form == "json":
            assert json.loads(out)["clusters"][0]["labels"] == {"\u202e": "\U000e0001\x85"}

    async def test_list_to_a_full_device_prints_a_one_line_error(self, daemon):
        daemon.answers["ListClusters"] = [FLEET]
        process = await asyncio.create_subprocess_shell(
            f"{COMMAND} list --address {daemon.address} > /dev/full", stderr=asyncio.subprocess.PIPE
        )
        _, err = await process.communicate()
        assert (process.returncode, err.decode()) == (
            1, "milo-discovery: cannot write to stdout: No space left on device\n"
        )  # fmt: skip


class TestTemplates:
    @pytest.mark.parametrize(
        ("arguments", "printed"),
        [
            (("-o", "jsonpath={.clusters[*].name}"), "alpha beta\n"),
            (("-o", "custom-columns=N:.name,NONE:.labels.none"), "N       NONE\nalpha   <none>\nbeta    <none>\n"),
            (("-o", "custom-columns=N:.name", "--no-headers"), "alpha\nbeta\n"),
            (("-o", "name", "--sort-by", ".name"), "alpha\nbeta\n"),
            (("-o", "name", "--sort-by", ".draining.deadline"), "alpha\nbeta\n"),
            (("-o", "name", "--sort-by", ".labels.env"), "alpha\nbeta\n"),
        ],
    )
    async def test_list_output_follows_jsonpath_and_custom_columns(self, command, daemon, arguments, printed):
        daemon.answers["ListClusters"] = [FLEET]
        assert (await command("list", *arguments)).out == printed

    @pytest.mark.parametrize(
        ("path", "hint"),
        [("foo", "; the fields are name, uid,"), (".label.env", "; did you mean labels?"), ("NAME", "mean name?")],
    )
    async def test_sort_by_a_field_that_clusters_do_not_have_is_a_usage_error(self, command, daemon, path, hint):
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("list", "--sort-by", path)
        assert (outcome.status, outcome.out) == (2, "")
        assert f"--sort-by '{path}': clusters have no field " in outcome.err
        assert hint in outcome.err

    @pytest.mark.parametrize("form", ["jsonpath={.clusters[}", "custom-columns=N", "jsonpth={.x}"])
    async def test_invalid_template_is_a_usage_error(self, command, daemon, form):
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("list", "-o", form)
        assert (outcome.status, outcome.out) == (2, "")


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

    async def test_explain_prints_the_report_as_json(self, command, daemon):
        daemon.answers["GetCluster"] = [self.REPORT]
        as_json = json.loads((await command("explain", "beta", "-o", "json")).out)
        assert as_json["cluster"]["uid"] == "uid-of-beta"
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
        assert any("connectivity" in line and "UNREACHABLE" in line for line in rest)
        assert any(line.startswith("  deletion       requested at 20") for line in rest)
        assert rest[-3:] == [
            "Last transitions:",
            "  1970-01-01T00:00:00Z   ENGAGED",
            "  1970-01-01T00:01:00Z   DISENGAGED   NOT_READY: condition Ready is False",
        ]

    async def test_explain_warns_of_a_stale_source(self, command, daemon):
        state = pb.SourceStatus.STATE_STALE
        stale = pb.SourceStatus(state=state, since=ago(), reason="Unauthorized", last_contact=ago(), name="core")
        report = pb.GetClusterResponse(engagement=self.REPORT.engagement, source=stale)
        daemon.answers["GetCluster"] = [report] * 2
        explained = (await command("explain", "beta")).out.splitlines()
        assert explained[2].startswith("  The report may be out of date: source core is STALE since 20")
        assert explained[2].endswith("last response from Milo 2d5h ago (Unauthorized).")
        as_json = json.loads((await command("explain", "beta", "-o", "json")).out)
        assert as_json["source"]["state"] == "STATE_STALE"

    async def test_explain_of_an_unknown_name_suggests_similar_names(self, command, daemon):
        daemon.answers["GetCluster"] = [Refusal(grpc.StatusCode.NOT_FOUND, "alpa was never seen")]
        daemon.answers["ListClusters"] = [FLEET]
        outcome = await command("explain", "alpa")
        causes = (
            "Milo has no project of this name, or it was deleted long ago, "
            "or the daemon's `rights` do not permit you to see it"
        )
        assert (outcome.status, outcome.err) == (
            3, f"milo-discovery: alpa was never seen: {causes}; did you mean alpha?\n"
        )  # fmt: skip

    async def test_explain_of_a_draining_cluster_lists_pending_releases(self, command, daemon):
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
        first, second = lines[lines.index("Not released yet by:") + 1 :]
        assert first.startswith("  operator-0/1   uid 7   connected since 20")
        assert second == "  operator-1/1   uid 7   disconnected since an unknown time"

    async def test_explain_prints_the_shard_member_that_owns_the_cluster(self, command, daemon):
        elsewhere = pb.Engagement(
            reason=pb.Engagement.REASON_UNASSIGNED, message="member b of the shard group owns it (view 3)"
        )
        daemon.answers["GetCluster"] = [pb.GetClusterResponse(engagement=elsewhere)]
        assert (await command("explain", "alpha")).out.splitlines()[:2] == [
            "alpha is not engaged: UNASSIGNED, since an unknown time.",
            "  member b of the shard group owns it (view 3)",
        ]

    async def test_explain_reports_that_a_cluster_was_never_engaged(self, command, daemon):
        malformed = pb.Engagement(reason=pb.Engagement.REASON_MALFORMED, message="its name is not a DNS label")
        daemon.answers["GetCluster"] = [pb.GetClusterResponse(engagement=malformed)]
        outcome = await command("explain", "x")
        assert outcome.out.splitlines() == [
            "x is not engaged: MALFORMED, since an unknown time.",
            "  its name is not a DNS label",
            "  This daemon has never engaged it.",
        ]
