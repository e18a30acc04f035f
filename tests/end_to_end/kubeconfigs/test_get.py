"""The command `get` with a real daemon and the sandbox's control planes."""

import asyncio
import json
import os
import pty
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from milo_discovery import DiscoveryClient
from milo_sandbox.custom_resources import CUSTOM_RESOURCE_DEFINITIONS
from milo_sandbox.faults import Injected
from milo_sandbox.resources import CONFIG_MAPS, SECRETS
from tests.end_to_end.kubeconfigs.conftest import Start
from tests.end_to_end.kubeconfigs.workspace import COMMANDS, Outcome, Workspace, open_workspace
from tests.integration.sandbox.widgets import definition
from tests.support.eventually import eventually
from tests.support.forked_command import forked

GET = str(COMMANDS / "milo-discovery")


@asynccontextmanager
async def fleet(start: Start, *others: str) -> AsyncIterator[Workspace]:
    """Start a workspace with the project alpha, and these others, all engaged."""
    async with start() as workspace:
        for name in others:
            workspace.sandbox.projects.create(name, ready=True, labels={"env": "prod"})
        async with DiscoveryClient(workspace.address) as client, client.watch() as watch:
            await watch.synced()
            await eventually(lambda: len(watch.clusters) == 1 + len(others))
        yield workspace


def configure(workspace: Workspace, project: str, *names: str, **labels: str) -> None:
    for name in names:
        document = {"metadata": {"name": name, "labels": labels}, "data": {"a": name}}
        workspace.sandbox.control_plane(project).create(CONFIG_MAPS, document, namespace="default")


def inject(
    workspace: Workspace, project: str, status: Literal[403, 404, 503, "hang"], times: int | None = None
) -> None:
    """Answer lists of this project's ConfigMaps with a status, or not at all."""
    fault = Injected(project=project, verb="list", kind="v1/configmaps", status=status, times=times)
    workspace.sandbox.faults.inject(fault)


async def get(workspace: Workspace, *arguments: str) -> Outcome:
    environment = {**os.environ, "MILO_DISCOVERY_ADDRESS": workspace.address}
    return Outcome(*await forked("milo-discovery", ("get", *arguments), environment))


USES: dict[str, tuple[int, str]] = {
    "cm": (0, "alpha     one    1"),
    "configmap": (0, "beta      two    1"),
    "ConfigMap": (0, "CLUSTER   NAME"),
    "configmaps.v1.": (0, "alpha     one"),
    "configmaps -A": (0, "alpha     default     one"),
    "configmaps --all-namespaces --no-headers": (0, "beta    default"),
    "cm -n default": (0, "one"),
    "cm -n=default -l=app=web -o=name": (0, "alpha configmap/one"),
    "cm -A=false --no-headers=true": (0, "alpha   one"),
    "cm --field-selector data.a=1 -w": (1, "no cluster accepts the request: 400"),
    "cm -n milo-system": (0, "no objects found in namespace milo-system of 2 clusters"),
    "cm -n nowhere": (0, "no objects found in namespace nowhere of 2 clusters"),
    "cm one": (0, "1 of 2 clusters have no configmaps/one: beta"),
    "cm one two": (0, "beta      two"),
    "cm one one": (0, "1 of 2 clusters have no configmaps/one: beta"),
    "cm one -A": (0, "alpha     default     one"),
    "cm/one": (0, "alpha     one"),
    "cm/one cm/two": (0, "configmap/two"),
    "cm nobody": (3, "no cluster has configmaps/nobody"),
    "cm -l app=web": (0, "alpha     one"),
    "cm -l app!=web": (0, "beta      two"),
    "cm --selector=app": (0, "alpha     one"),
    "cm --field-selector metadata.name=two": (0, "beta      two"),
    "cm -o wide": (0, "CLUSTER   NAME"),
    "cm -o json": (0, '"discovery.miloapis.com/cluster": "alpha"'),
    "cm -ojson one": (0, '"kind": "List"'),
    "cm -o yaml -A": (0, "discovery.miloapis.com/cluster: beta"),
    "cm -o name": (0, "alpha configmap/one"),
    "cm -o jsonpath={.items[*].data.a}": (0, "one two"),
    "cm one -o jsonpath={.data.a}": (0, "milo-discovery: found nothing; the template reads a List: {.items[*]...}"),
    "cm -o jsonpath={.items[?(@.metadata.name==one)].data.a}": (2, "one is not a quoted string"),
    "cm -o jsonpath={.items[::0].data.a}": (2, "cannot parse '[::0].data.a'"),
    "cm -o custom-columns=A:.metadata[?(@==one)]": (2, "one is not a quoted string"),
    "cm -o custom-columns=NAME:.metadata.name,A:.data.a": (0, "beta      two    two"),
    "cm,secrets": (0, "secret/token"),
    "cm,podz": (3, "no cluster serves a resource 'podz'; did you mean pods?"),
    "secrets -o json": (0, '"password": "c2VjcmV0"'),
    "ns": (0, "beta      default"),
    "Namespace default": (0, "alpha     default"),
    "ns -n nowhere": (0, "beta      milo-system"),
    "po": (0, "no objects found in namespace default of 2 clusters"),
    "deploy.apps -A": (0, "no objects found in any namespace of 2 clusters"),
    "deployments.v1.apps": (0, "no objects found"),
    "deployments.v9.apps": (3, "no cluster serves a resource 'deployments.v9.apps'"),
    "widgets": (0, "alpha     w1"),
    "widget.example.com w1 -o yaml": (0, "size: 3"),
    "crd": (0, "beta      widgets.example.com"),
    "podz": (3, "no cluster serves a resource 'podz'; did you mean pods?"),
    "cm --cluster alpha": (0, "alpha     one"),
    "cm --cluster alpha --cluster nobody": (1, "nobody    it is not engaged"),
    "cm --cluster-selector env=prod": (0, "beta      two"),
    "cm --cluster-selector env=nowhere": (0, "no engaged cluster matches selector 'env=nowhere'"),
    "cm --cluster alpha --cluster-selector env=prod": (1, "alpha     it does not match the other filters"),
    "cm --cluster-selector a=(": (2, "--cluster-selector: "),
    "cm --organization nobody": (0, "no engaged cluster matches organization 'nobody'"),
    "events -A": (0, ""),
    "leases -A -o json": (0, '"items": ['),
    "--help": (0, "milo-discovery get pods -A"),
}


async def test_uses_of_kubectl_are_answered_for_all_clusters_without_a_traceback(start: Start) -> None:
    async with fleet(start, "beta") as workspace:
        configure(workspace, "alpha", "one", app="web")
        configure(workspace, "beta", "two")
        alpha = workspace.sandbox.control_plane("alpha")
        alpha.create(SECRETS, {"metadata": {"name": "token"}, "data": {"password": "c2VjcmV0"}}, namespace="default")
        alpha.create(CUSTOM_RESOURCE_DEFINITIONS, definition())
        widgets = next(each for each in alpha.resources if each.plural == "widgets")
        alpha.create(widgets, {"metadata": {"name": "w1"}, "spec": {"size": 3}}, namespace="default")
        wrong: dict[str, object] = {}
        for use, (status, words) in USES.items():
            outcome = await get(workspace, *use.split())
            printed = outcome.out + outcome.err
            if outcome.status != status or words not in printed or "Traceback" in printed:
                wrong[use] = outcome
        assert wrong == {}


async def test_clusters_that_do_not_answer_are_named_with_the_cause(start: Start) -> None:
    async with fleet(start, "beta", "gamma", "delta") as workspace:
        for name in ("alpha", "beta", "gamma"):
            configure(workspace, name, f"of-{name}")
        inject(workspace, "beta", 403)
        inject(workspace, "gamma", 404)
        inject(workspace, "delta", "hang")
        outcome = await get(workspace, "configmaps", "--timeout", "1s")
        assert outcome.status == 1
        assert [line.split()[:2] for line in outcome.out.splitlines()] == [["CLUSTER", "NAME"], ["alpha", "of-alpha"]]
        count, heading, first, second = outcome.err.splitlines()[-4:]
        assert count == "milo-discovery: 2 of 4 clusters did not answer:"
        assert heading.split() == ["CLUSTER", "CAUSE"]
        assert first.startswith("beta      403 configmaps is forbidden")
        assert second.startswith("delta     https://")
        assert second.endswith("did not answer within 1 s")
        assert "milo-discovery: 1 of 4 clusters do not serve configmaps: gamma\n" in outcome.err


@pytest.mark.parametrize("kinds", ["configmaps,namespaces", "namespaces,configmaps"])
async def test_forbidden_kind_of_a_cluster_does_not_affect_other_kinds(start: Start, kinds: str) -> None:
    async with fleet(start, "beta") as workspace:
        inject(workspace, "beta", 403)
        outcome = await get(workspace, kinds, "--cluster", "beta", "-o", "name")
        assert outcome.status == 1
        assert "beta namespace/default" in outcome.out
        assert "milo-discovery: 1 of 1 cluster did not answer in full:" in outcome.err
        assert outcome.err.splitlines()[-1].startswith("beta      configmaps: 403 configmaps is forbidden")


async def test_many_objects_are_read_in_pages(start: Start) -> None:
    async with fleet(start) as workspace:
        configure(workspace, "alpha", *(f"cm-{number:04}" for number in range(1001)))
        outcome = await get(workspace, "configmaps", "-o", "name")
        assert len(outcome.out.splitlines()) == 1001


@pytest.mark.parametrize("arguments", [("cm",), ("cm", "--watch"), ("cm", "-o", "json")])
async def test_output_without_a_reader_ends_the_command_quietly(start: Start, arguments: tuple[str, ...]) -> None:
    async with fleet(start) as workspace:
        configure(workspace, "alpha", "one")
        reading, writing = os.pipe()
        os.close(reading)
        try:
            process = await asyncio.create_subprocess_exec(
                *(GET, "get", *arguments), env={**os.environ, "MILO_DISCOVERY_ADDRESS": workspace.address},
                stdout=writing, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        finally:
            os.close(writing)
        _, err = await process.communicate()
        assert (process.returncode, b"Traceback" in err) == (-signal.SIGPIPE, False)


async def test_watch_prints_changes_and_follows_engagements(start: Start) -> None:
    async with fleet(start) as workspace:
        configure(workspace, "alpha", "one")
        async with workspace.running(GET, "get", "cm", "-w", "-o", "json") as process:
            assert process.stdout is not None
            assert process.stderr is not None

            async def changed() -> tuple[str, str, str]:
                assert process.stdout is not None
                event = json.loads(await process.stdout.readline())
                assert event["object"]["data"]["a"] == event["object"]["metadata"]["name"]  # also of a deleted object
                metadata = event["object"]["metadata"]
                return event["type"], metadata["annotations"]["discovery.miloapis.com/cluster"], metadata["name"]

            async with asyncio.timeout(60):
                assert await changed() == ("ADDED", "alpha", "one")
                configure(workspace, "alpha", "two")
                assert await changed() == ("ADDED", "alpha", "two")
                alpha = workspace.sandbox.control_plane("alpha")
                alpha.edit_metadata(CONFIG_MAPS, "default/one", {"labels": {"app": "web"}})
                assert await changed() == ("MODIFIED", "alpha", "one")
                alpha.delete(CONFIG_MAPS, "default/two")
                assert await changed() == ("DELETED", "alpha", "two")
                workspace.sandbox.projects.create("beta", ready=True)
                configure(workspace, "beta", "other")
                assert await changed() == ("ADDED", "beta", "other")
                workspace.sandbox.compact()
                workspace.sandbox.end_watches()
                configure(workspace, "beta", "after")
                assert await changed() == ("ADDED", "beta", "after")
                workspace.sandbox.projects.delete("beta")
                err = b""
                while b"beta: disengaged: DELETED" not in err:
                    err += await process.stderr.readline()
                configure(workspace, "alpha", "three")
                assert await changed() == ("ADDED", "alpha", "three")
                process.send_signal(signal.SIGINT)
                _, rest = await process.communicate()
            assert process.returncode == 130
            assert b"Traceback" not in err + rest


async def test_watch_of_a_kind_that_no_cluster_serves_ends(start: Start) -> None:
    async with fleet(start) as workspace:
        outcome = await get(workspace, "podz", "--watch")
        assert (outcome.status, outcome.out) == (3, "")
        assert "no cluster serves a resource 'podz'; did you mean pods?" in outcome.err


async def test_watch_tells_when_a_cluster_does_not_answer_and_when_it_does_again(start: Start) -> None:
    async with fleet(start, "beta") as workspace:
        inject(workspace, "beta", 503, times=1)
        configure(workspace, "beta", "late")
        async with workspace.running(GET, "get", "cm", "-w", "--no-headers") as process, asyncio.timeout(60):
            assert process.stdout is not None
            assert (await process.stdout.readline()).split()[:3] == [b"ADDED", b"beta", b"late"]
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
        assert b"milo-discovery: beta: 503" in err
        assert b"milo-discovery: beta: answers again" in err


async def test_progress_is_drawn_on_a_terminal_after_a_second_and_erased(start: Start) -> None:
    async with fleet(start, "beta") as workspace:
        inject(workspace, "beta", "hang")
        parent, child = pty.openpty()
        try:
            process = await asyncio.create_subprocess_exec(
                GET, "get", "cm", "--timeout", "3s",
                env={**os.environ, "MILO_DISCOVERY_ADDRESS": workspace.address, "TERM": "xterm"},
                stdin=child, stdout=asyncio.subprocess.PIPE, stderr=child,
            )  # fmt: skip
            out, _ = await process.communicate()
            drawn = os.read(parent, 1 << 20).decode()
        finally:
            os.close(parent)
            os.close(child)
        assert b"\x1b" not in out
        assert "[###############...............] 1 of 2 clusters" in drawn
        *_, after = drawn.split("\r\x1b[K")
        assert after.startswith("milo-discovery: no objects found")
        assert "1 of 2 clusters did not answer" in after


@pytest.mark.parametrize("watches", [False, True])
async def test_interrupt_ends_the_command_while_a_cluster_hangs(start: Start, watches: bool) -> None:
    async with fleet(start, "beta") as workspace:
        inject(workspace, "beta", "hang")
        configure(workspace, "alpha", "one")
        before = workspace.sandbox.requests_of("beta")
        async with workspace.running(GET, "get", "cm", *(["--watch"] if watches else [])) as process:
            await eventually(lambda: workspace.sandbox.requests_of("beta") > before)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(60):
                _, err = await process.communicate()
        assert process.returncode == 130
        assert b"Traceback" not in err


async def test_daemon_without_credentials_for_a_cluster_is_the_cause(directory: Path) -> None:
    async with open_workspace(directory, kubeconfigs={}) as workspace:
        outcome = await get(workspace, "cm")
        assert outcome.status == 1
        assert "1 of 1 cluster did not answer:" in outcome.err
        assert "Traceback" not in outcome.err
