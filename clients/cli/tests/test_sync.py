"""Tests of `milo-discovery sync`: files follow the stream, and are kept if it breaks or is of another fleet."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from clients.python.tests import messages
from clients.python.tests.kubeconfigs import message, text
from clients.python.tests.messages import disengaged, engaged, following, renewed
from clients.python.tests.scripted_daemon import SILENCE, Refusal
from milo_discovery.kubeconfig_access import read_access
from milo_discovery.removals import RECENT_S, Memory
from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery_cli.exit_status import CommandFailure
from milo_discovery_cli.kubeconfig_directory import KubeconfigDirectory, check_owner

from .command_process import running

STREAMING = pb.SourceStatus(state=pb.SourceStatus.STATE_STREAMING)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clusters"


async def until(predicate: Callable[[], bool]) -> None:
    while not predicate():  # noqa: ASYNC110  (files have no event to wait for)
        await asyncio.sleep(0.005)


async def reported(process: asyncio.subprocess.Process, text: bytes) -> None:
    """Wait for a line of stderr that contains the text."""
    assert process.stderr is not None
    while text not in (line := await process.stderr.readline()):
        assert line, f"the process has ended without {text!r}"


def snapshot(revision: str, *events: pb.ClusterEvent, synced: bool = True) -> pb.WatchClustersResponse:
    return messages.snapshot(revision, *events, synced=synced, source=STREAMING)


def content(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in path.glob("*.kubeconfig"):
        with suppress(FileNotFoundError):  # removed after the glob
            found[file.stem] = read_access(file.read_bytes()).token or ""
    return dict(sorted(found.items()))


def index(path: Path) -> list[dict[str, object]]:
    return json.loads((path / "index.json").read_text())["clusters"]


def of_others(names: str, token: str | None = "other") -> list[pb.ClusterEvent]:
    """Return events of other clusters of these names."""
    return [engaged(messages.cluster(name, uid=f"other-{name}"), token=token) for name in names]


def sync(daemon, path: Path, *arguments: str):
    """Run `sync` with SECOND_LOOK_S reduced to 0.1 s, and as if it had begun RECENT_S before."""
    site = path.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(
        "from milo_discovery import removals\n"
        "begin, removals.SECOND_LOOK_S = removals.Removals.__init__, 0.1\n"
        "removals.Removals.__init__ = lambda self, accepts, began_at: begin(self, accepts=accepts)\n"
    )
    return running("sync", "--dir", str(path), *arguments, address=daemon.address, PYTHONPATH=str(site))


async def sync_once(daemon, path: Path, names: str, *arguments: str) -> tuple[int, str]:
    """Run `sync --once` while these clusters are engaged. Return its exit status and stderr."""
    async with sync(daemon, path, "--once", *arguments) as process:
        (await daemon.stream()).send(snapshot("1", *(engaged(name, token=f"{name}-1") for name in names)))
        _, err = await process.communicate()
    return process.returncode, err.decode()


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
    assert [entry["name"] for entry in index(path)] == ["a", "c"]


async def test_sync_keeps_files_while_the_daemon_is_down_and_catches_up(daemon, path):
    async with sync(daemon, path) as process:
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        await until(lambda: len(content(path)) == 2)
        await daemon.stop()
        await reported(process, b"retrying")
        assert content(path) == {"a": "a-1", "b": "b-1"}
        await daemon.start()
        (await daemon.stream()).send(snapshot("9", engaged("a", token="a-2")))
        await until(lambda: content(path) == {"a": "a-2"})


async def test_sync_continues_when_its_stream_is_resumed_after_a_snapshot_that_broke_off(daemon, path):
    """It wrote no file any more, so the credentials in all of them expired."""
    async with sync(daemon, path):
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        await until(lambda: len(content(path)) == 2)
        stream.end()
        another = await daemon.stream()
        another.send(messages.waiting())
        another.end()
        resumed = await daemon.stream()
        assert resumed.request.resume_revision == "1"
        resumed.send(following("1", "2", renewed("a", "a-2"), disengaged("b")))
        await until(lambda: content(path) == {"a": "a-2"})


async def test_sync_restart_removes_files_only_with_a_complete_view(daemon, path):
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        assert await process.wait() == 0
    async with sync(daemon, path):
        stream = await daemon.stream()
        stream.send(snapshot("5", engaged("b", token="b-2"), synced=False))
        stream.end()
        stream = await daemon.stream()  # opened after the client read the end of the first stream
        assert content(path) == {"a": "a-1", "b": "b-1"}
        stream.send(snapshot("5", engaged("b", token="b-2"), engaged("c", token="c-1")))
        await until(lambda: content(path) == {"b": "b-2", "c": "c-1"})


@pytest.mark.parametrize("arguments", [(), ("--timeout", "1h")])
async def test_sync_limits_each_call_of_the_daemon(daemon, path, arguments):
    """Found by a reader: one answer that was lost kept it from writing any further file."""
    async with sync(daemon, path, *arguments):
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1")))
        await until(lambda: len(content(path)) == 1)
    assert daemon.deadlines_s[0] is not None
    assert daemon.deadlines_s[0] < 11, "gRPC rounds 10 s up to the next 0.1 s"


async def test_sync_with_another_filter_or_group_fails_and_removes_nothing(daemon, path):
    assert (await sync_once(daemon, path, "a"))[0] == 0
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    status, err = await sync_once(daemon, path, "", "-l", "nothing=here")
    assert status == 1
    assert f"{path} was written with no filter, but this run has the filter `-l nothing=here`: check" in err
    assert "--accept-removals" in err
    daemon.group = "dns"
    status, err = await sync_once(daemon, path, "a")
    assert (status, "this daemon belongs to the shard group 'dns'" in err) == (1, True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert (await sync_once(daemon, path, "b", "--accept-removals"))[0] == 0
    assert content(path) == {"b": "b-1"}
    assert (await sync_once(daemon, path, "b"))[0] == 0


@pytest.mark.parametrize("there", ["a", "ab"])
async def test_sync_of_another_fleet_changes_nothing_without_accept_removals(daemon, path, there):
    assert (await sync_once(daemon, path, there))[0] == 0
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for others in ("", "cd"):
        status, err = await sync_once(daemon, path, others)
        assert (status, "the daemon's view lacks all" in err) == (1, True)
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert (await sync_once(daemon, path, "cd", "--accept-removals"))[0] == 0
    assert content(path) == {"c": "c-1", "d": "d-1"}


async def test_sync_with_a_much_smaller_view_writes_new_files_and_removes_no_files(daemon, path):
    assert (await sync_once(daemon, path, "abc"))[0] == 0
    status, err = await sync_once(daemon, path, "ad")
    assert (status, "the daemon's view lacks 2 of 3 clusters that have an object or file" in err) == (1, True)
    assert list(content(path)) == [entry["name"] for entry in index(path)] == list("abcd")


async def test_sync_keeps_files_if_its_view_comes_to_lack_much_of_the_fleet_in_two_portions(daemon, path):
    async with sync(daemon, path) as process:
        (await daemon.stream()).send(snapshot("1", *(engaged(name, token=f"{name}-1") for name in "abcdefg")))
        await until(lambda: len(content(path)) == 7)
        await daemon.stop()
        await daemon.start()
        (await daemon.stream()).send(snapshot("2", *(engaged(name, token=f"{name}-2") for name in "abcd")))
        await until(lambda: "".join(content(path)) == "abcd")
        await daemon.stop()
        await daemon.start()
        (await daemon.stream()).send(snapshot("3", *(engaged(name, token=f"{name}-3") for name in "ag")))
        await reported(process, b"lacks 5 of 7 clusters")
        await until(lambda: content(path) == {"a": "a-3", "b": "b-2", "c": "c-2", "d": "d-2", "g": "g-3"})


async def test_sync_that_reconnects_to_another_fleet_changes_nothing(daemon, path):
    async with sync(daemon, path) as process:
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        await until(lambda: len(content(path)) == 2)
        await daemon.stop()
        await daemon.start()
        (await daemon.stream()).send(snapshot("9", engaged("c", token="c-1")))
        await reported(process, b"nothing is written")
    assert content(path) == {"a": "a-1", "b": "b-1"}


@pytest.mark.parametrize("token", [None, "other"])
async def test_sync_of_another_fleet_of_the_same_names_changes_nothing_without_accept_removals(daemon, path, token):
    assert (await sync_once(daemon, path, "abc"))[0] == 0
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(snapshot("1", *of_others("abcd", token)))
        _, err = await process.communicate()
    assert (process.returncode, b"the daemon's view lacks all 3 clusters" in err) == (1, True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    async with sync(daemon, path, "--once", "--accept-removals") as process:
        (await daemon.stream()).send(snapshot("1", *of_others("abcd")))
        assert await process.wait() == 0
    assert content(path) == dict.fromkeys("abcd", "other")


async def test_sync_that_reconnects_to_another_fleet_of_the_same_names_changes_nothing(daemon, path):
    async with sync(daemon, path) as process:
        (await daemon.stream()).send(snapshot("1", *(engaged(name, token=f"{name}-1") for name in "ab")))
        await until(lambda: len(content(path)) == 2)
        await daemon.stop()
        await daemon.start()
        (await daemon.stream()).send(snapshot("9", *of_others("ab")))
        await reported(process, b"nothing is written")
        assert content(path) == {"a": "a-1", "b": "b-1"}
        await daemon.stop()
        await daemon.start()
        (await daemon.stream()).send(snapshot("1", *(engaged(name, token=f"{name}-2") for name in "ab")))
        await until(lambda: content(path) == {"a": "a-2", "b": "b-2"})


async def test_sync_of_a_view_with_other_clusters_of_most_names_keeps_their_files(daemon, path):
    assert (await sync_once(daemon, path, "abc"))[0] == 0
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(snapshot("1", *of_others("ab"), engaged("c", token="c-2")))
        _, err = await process.communicate()
    assert (process.returncode, b"lacks 2 of 3 clusters" in err) == (1, True)
    assert content(path) == {"a": "a-1", "b": "b-1", "c": "c-2"}
    assert [entry["uid"] for entry in index(path)] == ["uid-of-a", "uid-of-b", "uid-of-c"]


@pytest.mark.parametrize("arguments", [(), ("--once",)])
async def test_sync_replaces_the_file_of_a_cluster_that_was_replaced_while_it_was_down(daemon, path, arguments):
    assert (await sync_once(daemon, path, "abc"))[0] == 0
    async with sync(daemon, path, *arguments) as process:
        (await daemon.stream()).send(
            snapshot("1", *of_others("a"), engaged("b", token="b-2"), engaged("c", token="c-2"))
        )
        await until(lambda: content(path) == {"a": "other", "b": "b-2", "c": "c-2"})
        await until(lambda: index(path)[0]["uid"] == "other-a")
        if arguments:
            assert await process.wait() == 0


async def test_sync_replaces_the_files_of_all_clusters_that_are_reported_as_replaced(daemon, path):
    async with sync(daemon, path):
        stream = await daemon.stream()
        stream.send(snapshot("1", *(engaged(name, token=f"{name}-1") for name in "abc")))
        await until(lambda: len(content(path)) == 3)
        replaced = [disengaged(name, pb.DISENGAGE_REASON_REPLACED) for name in "abc"]
        stale = pb.SourceStatus(state=pb.SourceStatus.STATE_STALE)
        stream.send(following("1", "2", *replaced, *of_others("ab"), *of_others("c", None), source=stale))
        await until(lambda: content(path) == {"a": "other", "b": "other"})


async def test_sync_keeps_the_files_of_clusters_that_it_loses_its_right_to_and_whose_names_others_get(daemon, path):
    async with sync(daemon, path) as process:
        stream = await daemon.stream()
        stream.send(snapshot("1", *(engaged(name, token=f"{name}-1") for name in "abc")))
        await until(lambda: len(content(path)) == 3)
        revoked = [disengaged(name, pb.DISENGAGE_REASON_REVOKED) for name in "ab"]
        stream.send(following("1", "2", *revoked, *of_others("ab"), renewed("c", "c-2")))
        await reported(process, b"lacks 2 of 3 clusters")
        stream.send(following("2", "3", *(engaged(name, token=f"{name}-1") for name in "defgh")))
        await until(lambda: len(content(path)) == 8)
        daemon.answers["GetServerInfo"] = answers = [pb.GetServerInfoResponse() for _ in range(20)]
        await until(lambda: not answers)  # each review takes one
        assert {name: content(path)[name] for name in "abc"} == {"a": "a-1", "b": "b-1", "c": "c-2"}


async def test_files_that_are_being_written_when_others_go_missing_are_part_of_the_fleet(daemon, path):
    """The hold ended itself, and the files of missing clusters became those of others of their names."""
    starting = sync(daemon, path)
    with (path.parent / "site" / "sitecustomize.py").open("a") as site:
        site.write("import os, time\nos.fsync = lambda file: time.sleep(0.3)\n")
    async with starting as process:
        stream = await daemon.stream()
        stream.send(snapshot("1", *(engaged(name, token=f"{name}-1") for name in "abc")))
        await until(lambda: len(content(path)) == 3)
        revoked = [disengaged(name, pb.DISENGAGE_REASON_REVOKED) for name in "ab"]
        stream.send(following("1", "2", *revoked, *of_others("ab"), *(engaged(name, token="new") for name in "defgh")))
        await reported(process, b"lacks 2 of 3 clusters")
        await until(lambda: len(content(path)) == 8)
        daemon.answers["GetServerInfo"] = answers = [pb.GetServerInfoResponse() for _ in range(5)]
        await until(lambda: not answers)  # each review takes one
        assert {name: content(path)[name] for name in "abc"} == {"a": "a-1", "b": "b-1", "c": "c-1"}


async def test_sync_that_starts_at_another_fleet_changes_nothing_also_before_its_source_is_streaming(daemon, path):
    assert (await sync_once(daemon, path, "ab"))[0] == 0
    daemon.answers["GetServerInfo"] = answers = [pb.GetServerInfoResponse()] * 1000
    async with sync(daemon, path) as process:
        stream = await daemon.stream()
        stream.send(messages.snapshot("1", *(engaged(name, token=name) for name in "cdef")))
        await until(lambda: len(answers) < 1000)
        stream.send(following("1", "2", renewed("c", "c-2"), source=STREAMING))
        await reported(process, b"nothing is written")
    assert content(path) == {"a": "a-1", "b": "b-1"}


async def test_sync_with_another_filter_removes_nothing_also_before_it_knows_the_group(daemon, path):
    assert (await sync_once(daemon, path, "abc"))[0] == 0
    before = sorted(file.name for file in path.iterdir())
    daemon.answers["GetServerInfo"] = answers = [Refusal(grpc.StatusCode.UNAVAILABLE, "busy")] * 3 + [
        pb.GetServerInfoResponse()
    ]
    async with sync(daemon, path, "-l", "env=prod") as process:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a", token="a-9"), engaged("b", token="b-9")))
        await until(lambda: len(answers) < 4)
        stream.send(following("1", "2", disengaged("a", pb.DISENGAGE_REASON_LABELS_CHANGED)))
        _, err = await process.communicate()
    assert b"was written with no filter" in err
    assert sorted(file.name for file in path.iterdir()) == before


async def test_sync_removes_no_file_for_another_cluster_of_its_name_that_ends(daemon, path):
    assert (await sync_once(daemon, path, "abd"))[0] == 0
    async with sync(daemon, path) as process:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("c", token="c-1")))
        await reported(process, b"nothing is written")
        other = messages.cluster("a", uid="another")
        stream.send(following("1", "2", engaged(other, token="a-2")))
        stream.send(following("2", "3", disengaged(other, pb.DISENGAGE_REASON_DELETED)))
        stream.send(following("3", "4", engaged("b", token="b-2")))
        # It lacks two of three clusters, so that their files stay however late they are read.
        await until(lambda: content(path) == {"a": "a-1", "b": "b-2", "c": "c-1", "d": "d-1"})


async def test_sync_keeps_the_file_of_a_cluster_that_ends_until_its_source_is_streaming(daemon, path):
    async with sync(daemon, path):
        stream = await daemon.stream()
        stream.send(snapshot("1", *(engaged(name, token=f"{name}-1") for name in "abc")))
        await until(lambda: len(content(path)) == 3)
        stale = pb.SourceStatus(state=pb.SourceStatus.STATE_STALE)
        moved = disengaged("b", pb.DISENGAGE_REASON_MOVED)
        stream.send(following("1", "2", disengaged("a"), moved, renewed("c", "c-2"), source=stale))
        await until(lambda: content(path) == {"a": "a-1", "c": "c-2"})
        stream.send(following("2", "3", renewed("c", "c-3"), source=STREAMING))
        await until(lambda: content(path) == {"c": "c-3"})


async def test_sync_keeps_files_when_its_authorization_is_revoked(daemon, path):
    async with sync(daemon, path) as process:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a", token="a-1"), engaged("b", token="b-1")))
        await until(lambda: len(content(path)) == 2)
        stream.send(following("1", "2", *(disengaged(name, pb.DISENGAGE_REASON_REVOKED) for name in "ab")))
        await reported(process, b"nothing is written")
    assert content(path) == {"a": "a-1", "b": "b-1"}


async def test_sync_keeps_the_file_of_a_missing_cluster_while_the_source_state_is_unknown(daemon, path):
    assert (await sync_once(daemon, path, "ab"))[0] == 0
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(messages.snapshot("1", engaged("b", token="b-2")))
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"not finished: 1 files wait until their clusters' sources are streaming" in err
    assert content(path) == {"a": "a-1", "b": "b-2"}


async def test_sync_says_why_it_writes_nothing_while_no_source_of_its_files_is_streaming(daemon, path):
    """Found by a reader: without a word, it wrote nothing, and `--once` did not end."""
    assert (await sync_once(daemon, path, "ab"))[0] == 0
    problem = b"lacks all 2 clusters that have an object or file, and the sources of 2 are not streaming"
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(messages.snapshot("1", engaged("c", token="c-1")))
        _, err = await process.communicate()
    assert (process.returncode, problem in err, b"not finished: 2 files" in err) == (1, True, True)
    async with sync(daemon, path) as process:
        stream = await daemon.stream()
        stream.send(messages.snapshot("1", engaged("c", token="c-1")))
        await reported(process, problem)
        assert content(path) == {"a": "a-1", "b": "b-1"}
        back = [engaged(name, token=f"{name}-2") for name in "ab"]
        stream.send(following("1", "2", *back, source=STREAMING))
        await reported(process, b"resolved: ")
        await until(lambda: content(path) == {"a": "a-2", "b": "b-2", "c": "c-1"})


async def test_sync_keeps_files_while_most_clusters_are_missing_or_of_a_source_that_is_not_followed(daemon, path):
    names = ["eu#a", "eu#b", "us#c", "us#d", "us#e"]
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(snapshot("1", *(engaged(name, token=name) for name in names)))
        assert await process.wait() == 0
    async with sync(daemon, path) as process:
        view = messages.snapshot("2", engaged("eu#a", token="new"))
        view.source.state = pb.SourceStatus.STATE_STALE
        for name, state in (("eu", pb.SourceStatus.STATE_STREAMING), ("us", pb.SourceStatus.STATE_STALE)):
            view.sources.add(name=name, state=state)
        (await daemon.stream()).send(view)
        await reported(process, b"lacks 4 of 5 clusters")
        await until(lambda: content(path)["eu#a"] == "new")
    assert len(content(path)) == 5


async def test_sync_makes_accepted_removals_once_the_source_is_streaming(daemon, path):
    assert (await sync_once(daemon, path, "abc"))[0] == 0
    async with sync(daemon, path, "--accept-removals"):
        stream = await daemon.stream()
        stream.send(messages.snapshot("1", engaged("a", token="a-2")))
        await until(lambda: content(path)["a"] == "a-2")
        stream.send(following("1", "2", renewed("a", "a-3"), source=STREAMING))
        await until(lambda: content(path) == {"a": "a-3"})


async def test_sync_removes_the_files_of_clusters_that_another_replica_owns(daemon, path):
    daemon.group = "dns"
    assert (await sync_once(daemon, path, "abc"))[0] == 0
    elsewhere = pb.GetClusterResponse(engagement=pb.Engagement(reason=pb.Engagement.REASON_UNASSIGNED))
    daemon.answers["GetCluster"] = [elsewhere, elsewhere]
    assert (await sync_once(daemon, path, "c"))[0] == 0
    assert content(path) == {"c": "c-1"}


async def test_sync_writes_credentials_while_the_daemon_does_not_answer_about_missing_clusters(daemon, path):
    """Found by a reader: with 1,000 missing clusters it wrote nothing for 20 minutes, and so on."""
    daemon.group = "dns"
    names = [f"c{number}" for number in range(40)]
    assert (await sync_once(daemon, path, names))[0] == 0
    daemon.answers["GetCluster"] = [SILENCE] * 100
    async with sync(daemon, path) as process, asyncio.timeout(8.0):
        (await daemon.stream()).send(snapshot("1", engaged("c1", token="renewed")))
        await until(lambda: content(path)["c1"] == "renewed")
        await reported(process, b"lacks 39 of 40 clusters")
    assert len(content(path)) == 40


async def test_portions_of_missing_clusters_are_held_together_by_several_runs_of_sync(daemon, path):
    """Found by a reader: each run removed less than a mass, and knew nothing of what the former one had removed."""
    assert (await sync_once(daemon, path, "abcdefg"))[0] == 0
    assert (await sync_once(daemon, path, "defg"))[0] == 0
    for _ in range(2):
        status, err = await sync_once(daemon, path, "fg")
        assert (status, "lacks 5 of 7 clusters" in err) == (1, True)
        assert "".join(content(path)) == "defg"
    assert (await sync_once(daemon, path, "abcdefg"))[0] == 0
    assert (await sync_once(daemon, path, "cdefg"))[0] == 0


async def test_files_that_were_created_during_a_hold_say_nothing_of_how_much_the_view_lacks_in_the_next_run(
    daemon, path
):
    """Found by a reader: the second run removed the files that the first one had held."""
    assert (await sync_once(daemon, path, "abcdefg"))[0] == 0
    for _ in range(2):
        status, err = await sync_once(daemon, path, "abhijklmnop")
        assert (status, "lacks 5 of 7 clusters" in err) == (1, True)
        assert "".join(content(path)) == "abcdefghijklmnop"
    assert (await sync_once(daemon, path, "abhijklmnop", "--accept-removals"))[0] == 0
    assert (await sync_once(daemon, path, "bhijklmnop"))[0] == 0
    assert "".join(content(path)) == "bhijklmnop"


def test_ledger_of_a_former_run_counts_for_a_short_time_or_while_removals_are_held(path: Path):
    memory = Memory(created=frozenset("b"), removed=frozenset("c"))
    for is_held in (False, True):
        with KubeconfigDirectory(path) as directory:
            directory.memory = dataclasses.replace(memory, is_held=is_held)
            directory.reconcile({}, ended={})
        with KubeconfigDirectory(path) as directory:
            assert directory.memory == dataclasses.replace(memory, is_held=is_held)
        former = time.time() - RECENT_S - 1
        os.utime(path / ".milo-discovery.json", (former, former))
        with KubeconfigDirectory(path) as directory:
            assert (directory.memory == Memory()) is not is_held


async def test_sync_with_option_once_fails_if_a_cluster_has_no_file(daemon, path):
    path.mkdir()
    (path / "b.kubeconfig").write_text("of another program")
    status, err = await sync_once(daemon, path, "ab")
    assert status == 1
    assert "no file for 'b'" in err
    assert "some clusters have no file" in err
    assert (path / "a.kubeconfig").exists()


async def test_sync_with_option_once_waits_for_the_file_of_each_cluster(daemon, path):
    async with sync(daemon, path, "--once") as process:
        stream = await daemon.stream()
        stream.send(snapshot("1", engaged("a", token="a-1"), engaged("b")))
        await until(lambda: content(path) == {"a": "a-1"})
        assert process.returncode is None
        stream.send(following("1", "2", renewed("b", "b-1")))
        assert await process.wait() == 0
    assert content(path) == {"a": "a-1", "b": "b-1"}


async def test_sync_reports_once_that_credentials_live_longer_than_requested(daemon, path):
    async with sync(daemon, path, "--once", "--ttl", "1s") as process:
        clusters = [engaged(name) for name in "ab"]
        for cluster in clusters:
            cluster.kubeconfig.CopyFrom(message(text(token="t")))
        (await daemon.stream()).send(snapshot("1", *clusters))
        _, err = await process.communicate()
    assert err.decode().count("credentials are valid for 10m (1s requested)") == 1


async def test_sync_killed_during_a_write_leaves_no_partial_file(daemon, path):
    """All existing files are complete, and the next process continues."""
    whole = {letter: letter * (1 << 19) for letter in "abcdefgh"}
    for attempt in range(3):
        async with sync(daemon, path, "--accept-removals") as process:
            stream = await daemon.stream()
            names = [f"{attempt}-{letter}" for letter in whole]
            stream.send(*_batches(names, list(whole.values())))
            await until(lambda names=names: any((path / f"{name}.kubeconfig").exists() for name in names))
            process.kill()
            await process.wait()
        for name, token in content(path).items():
            assert token == whole[name[-1]]
    async with sync(daemon, path, "--once", "--accept-removals") as process:
        (await daemon.stream()).send(snapshot("1", engaged("only", token="k")))
        assert await process.wait() == 0
    assert sorted(file.name for file in path.iterdir()) == [".milo-discovery.json", "index.json", "only.kubeconfig"]


def _batches(names: list[str], tokens: list[str]):
    yield snapshot("0", synced=False)
    for number, (name, token) in enumerate(zip(names, tokens, strict=True), 1):
        event = engaged(name, token=token)
        yield following(str(number - 1), str(number), event, synced=number == len(names))


def fill_disk(site: Path) -> Path:
    """Have Path.replace fail with ENOSPC while the returned file exists, in processes with this PYTHONPATH."""
    (full := site / "full").touch()
    (site / "sitecustomize.py").write_text(
        "import errno, os, pathlib\n"
        "real = pathlib.Path.replace\n"
        "def replace(self, target):\n"
        f"    if os.path.exists({str(full)!r}): raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    return real(self, target)\n"
        "pathlib.Path.replace = replace\n"
    )
    return full


async def test_files_that_are_about_to_be_removed_are_no_part_of_the_fleet(daemon, path, tmp_path):
    daemon.group = "dns"
    assert (await sync_once(daemon, path, "abcdefg"))[0] == 0
    elsewhere = pb.GetClusterResponse(engagement=pb.Engagement(reason=pb.Engagement.REASON_UNASSIGNED))
    daemon.answers["GetCluster"] = [elsewhere, elsewhere]
    full = fill_disk(tmp_path)
    async with running("sync", "--dir", str(path), address=daemon.address, PYTHONPATH=str(tmp_path)) as process:
        (await daemon.stream()).send(snapshot("1", *(engaged(name, token=f"{name}-2") for name in "fg")))
        await reported(process, b"lacks 3 of 5 clusters")
        full.unlink()
        await until(lambda: content(path).get("g") == "g-2" and len(content(path)) == 5)


async def test_sync_waits_for_space_on_a_full_disk_and_catches_up(daemon, path, tmp_path):
    full = fill_disk(tmp_path)
    path.mkdir()
    (path / ".milo-discovery.json").write_text('{"files": [], "index": true}')
    async with running("sync", "--dir", str(path), address=daemon.address, PYTHONPATH=str(tmp_path)) as process:
        (await daemon.stream()).send(snapshot("1", engaged("a", token="a-1")))
        await reported(process, b"No space left on device; retrying")
        assert content(path) == {}
        full.unlink()
        await until(lambda: content(path) == {"a": "a-1"})
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_sync_once_fails_if_it_is_terminated_before_the_directory_is_complete(daemon, path):
    async with sync(daemon, path, "--once") as process:
        (await daemon.stream()).send(snapshot("1", engaged("a")))
        await until((path / "index.json").exists)
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
    assert (process.returncode, "ended by SIGTERM" in err.decode()) == (1, True)


@pytest.fixture(params=[0o700, 0o777], ids=oct)
def mode(request: pytest.FixtureRequest, path: Path) -> int:
    path.mkdir()
    path.chmod(request.param)
    return request.param


async def test_sync_warns_of_a_world_writable_directory(daemon, path: Path, mode: int):
    status, err = await sync_once(daemon, path, "a")
    assert (status, "is world-writable" in err) == (0, mode == 0o777)


@pytest.mark.parametrize(("user", "is_refused"), [(0, True), (1000, False)])
def test_sync_directory_of_another_user_is_refused_for_root_and_reported_otherwise(
    path: Path, monkeypatch, capsys, user, is_refused
):
    status = os.stat_result((0o40755, 0, 0, 1, 4242, 4242, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: status)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    told = f"{path} belongs to user 4242, who can read and replace the kubeconfigs in it: run chown {user} on it"
    if is_refused:
        with pytest.raises(CommandFailure, match=re.escape(told)):
            check_owner(path)
    else:
        check_owner(path)
        assert capsys.readouterr().err == f"milo-discovery: {told}\n"
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    check_owner(path)
    assert capsys.readouterr().err == ""


def names_in(path: Path) -> list[str]:
    return [found.name for found in path.iterdir()]


@pytest.fixture
def path_of_another_user(path: Path) -> Path:
    path.mkdir()
    os.chown(path, 4242, 4242)
    return path


@pytest.mark.skipif(os.geteuid() != 0, reason="changes the owner of a directory")
async def test_sync_run_by_root_refuses_a_directory_of_another_user(daemon, path_of_another_user: Path):
    async with sync(daemon, path_of_another_user, "--once") as process:
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"belongs to user 4242" in err
    assert names_in(path_of_another_user) == []
