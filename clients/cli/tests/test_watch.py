"""Tests of the command `watch`."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import grpc
import pytest
import yaml
from google.rpc.error_details_pb2 import ErrorInfo

from clients.python.tests.messages import cluster, disengaged, engaged, following, renewed, snapshot, updated
from clients.python.tests.scripted_daemon import Refusal
from milo_discovery.v1 import discovery_pb2 as pb

from .command_process import ALPHA, COMMAND, ago, running


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

    async def test_watch_prints_a_line_for_each_event_type(self, daemon):
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
                ["UPDATED", "alpha", "-", "deletion", "requested,", "reinstated"],
                ["KUBECONFIG", "alpha", "-", "until", "-"],
                ["DISENGAGED", "alpha", "-", "DELETED:", "gone"],
            ]

    @pytest.mark.parametrize(
        ("arguments", "printed"),
        [
            (("-o", "jsonpath={.type} {.cluster.name}"), "TYPE_ENGAGED alpha\nTYPE_ENGAGED beta-1\n"),
            (
                ("-o", "custom-columns=N:.cluster.name,O:.cluster.organization"),
                "N   O\nalpha   acme\nbeta-1   <none>\n",
            ),
            (("-o", "custom-columns=N:.cluster.name", "--no-headers"), "alpha\nbeta-1\n"),
        ],
    )
    async def test_watch_output_follows_jsonpath_and_custom_columns(self, command, daemon, arguments, printed):
        watching = asyncio.create_task(command("watch", "--once", *arguments))
        (await daemon.stream()).send(snapshot("1", engaged(ALPHA), engaged("beta-1")))
        assert (await watching).out == printed

    async def test_watch_refuses_an_invalid_template_before_it_connects(self, command):
        outcome = await command("watch", "-o", "custom-columns=N")
        assert (outcome.status, outcome.out) == (2, "")

    async def test_watch_with_a_closed_stdout_fails_without_a_traceback(self, daemon):
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'exec "$0" watch --address "$1" >&-', COMMAND, daemon.address),
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await process.communicate()
        assert (process.returncode, err.decode()) == (1, "milo-discovery: cannot write to stdout: it is closed\n")

    async def test_watch_reports_a_reconnect_to_stderr(self, daemon):
        async with running("watch", "-o", "name", address=daemon.address) as process:
            stream = await daemon.stream()
            stream.send(snapshot("1", engaged("a")))
            assert await process.stdout.readline() == b"a\n"
            assert await process.stderr.readline() == b"milo-discovery: synced: 1 cluster\n"
            stopping = (ErrorInfo(reason="SHUTTING_DOWN"),)
            stream.end(Refusal(grpc.StatusCode.UNAVAILABLE, "shutting down; keep all clusters and resume", stopping))
            (await daemon.stream()).send(following("1", "2", engaged("b")))
            assert await process.stderr.readline() == (b"milo-discovery: connection lost: shutting down; retrying\n")
            assert await process.stderr.readline() == b"milo-discovery: connected, stream resumed\n"
            assert await process.stdout.readline() == b"b\n"
            await daemon.stop()
            await daemon.start()
            (await daemon.stream()).send(snapshot("z", engaged(cluster("a", incarnation="new")), engaged("b")))
            assert b"connection lost" in await process.stderr.readline()
            assert await process.stderr.readline() == b"milo-discovery: connected, receiving a snapshot\n"
            assert await process.stderr.readline() == b"milo-discovery: synced: 2 clusters\n"

    @pytest.mark.parametrize("form", ["json", "yaml"])
    async def test_watch_prints_one_document_per_event(self, command, daemon, form):
        watching = asyncio.create_task(command("watch", "--once", "-o", form, "--timestamps"))
        (await daemon.stream()).send(snapshot("1", engaged("a"), engaged("b")))
        out = (await watching).out
        events = list(yaml.safe_load_all(out)) if form == "yaml" else [json.loads(line) for line in out.splitlines()]
        assert [(event["type"], event["cluster"]["name"]) for event in events] == [
            ("TYPE_ENGAGED", "a"),
            ("TYPE_ENGAGED", "b"),
        ]
        assert all(event["receivedAt"].endswith("Z") for event in events)

    async def test_watch_interrupted_by_sigint_exits_with_130_and_prints_no_error(self, daemon):
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

    async def test_watch_exits_with_timeout_if_no_complete_view_arrives(self, command, daemon):
        watching = asyncio.create_task(command("watch", "--timeout", "1s"))
        (await daemon.stream()).send(snapshot("1", engaged("a"), synced=False))
        outcome = await watching
        assert (outcome.status, outcome.out) == (6, "")
        assert outcome.err.startswith("milo-discovery: no complete view from unix:")

    async def test_watch_timeout_without_a_daemon_reports_a_connection_error(self, command, daemon):
        await daemon.stop()
        outcome = await command("watch", "--timeout", "1s")
        assert outcome.status == 5
        first, last = outcome.err.splitlines()
        assert "No such file or directory" in first
        assert first.endswith("; retrying")
        assert last.startswith("milo-discovery: cannot connect to the daemon at unix:")

    async def test_watch_reports_when_a_source_becomes_stale_and_when_it_is_followed_again(self, daemon):
        def source(state: pb.SourceStatus.State.ValueType, reason: str = "") -> pb.SourceStatus:
            return pb.SourceStatus(state=state, reason=reason)

        async with running("watch", "--no-headers", address=daemon.address) as process:
            stream = await daemon.stream()
            streaming, stale = pb.SourceStatus.STATE_STREAMING, pb.SourceStatus.STATE_STALE
            stream.send(snapshot("1", engaged("a"), source=source(streaming)))
            assert await process.stderr.readline() == b"milo-discovery: synced: 1 cluster\n"
            stream.send(
                following("1", "1", source=source(stale, "ConnectionLost")),
                following("1", "1", source=source(stale, "ConnectionLost")),
            )
            line = (await process.stderr.readline()).decode()
            assert line.startswith("milo-discovery: source STALE since ")
            assert line.endswith("(ConnectionLost)\n")
            stream.send(following("1", "1", source=source(streaming)))
            assert (await process.stderr.readline()).startswith(b"milo-discovery: source STREAMING since ")
