"""Every command in the documents is run, or checked as far as possible on this host."""

import argparse
import asyncio
import importlib.util
import inspect
import json
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery_cli import command_line as client
from milo_sandbox.resources import CONFIG_MAPS
from tests.end_to_end.process.conftest import Workspace, directory, workspace
from tests.support.eventually import LIMIT_S
from tests.tooling.deploy.manifests import BUILT, TENANTS
from tests.tooling.deploy.validators import kubectl
from tests.tooling.docs.shell import BLOCKS, DOCUMENTS, ROOT, Block
from tests.tooling.docs.stranger import blocks
from tests.tooling.docs.ways import NEED_A_CLUSTER, Way, way

__all__ = ["directory", "workspace"]


def documented_commands(wanted: Way) -> list[tuple[str, ...]]:
    """Return the documented commands that are tested in this way (see Way), without duplicates."""
    found = {
        part: None
        for block in BLOCKS
        for command in block.commands
        for part in command.parts()
        if way(block, part) is wanted
    }
    return list(found)


def test_commands_that_need_a_cluster_are_listed() -> None:
    assert {joined(words) for words in documented_commands(Way.IN_A_CLUSTER)} == set(NEED_A_CLUSTER)


@pytest.mark.parametrize("each", Way, ids=lambda each: each.name)
def test_verification_of_documented_commands_refers_to_an_existing_test_or_file(each: Way) -> None:
    path, _, name = each.value.partition("::")
    found = ROOT / path
    assert found.exists()
    assert not name or f"def {name}(" in found.read_text()


def joined(words: Sequence[str]) -> str:
    return " ".join(words)


TYPED = [
    block
    for block in BLOCKS
    if any(way(block, part) is Way.TYPED for command in block.commands for part in command.parts())
]
[RULES] = (block for block in TYPED if block.document.name == "security.md")
LIKE = (
    (r"\b(?:\d+[dhms])+\b", "AGE"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"),
    (r"[ \t]+", " "),
)


def alike(text: str) -> list[str]:
    for pattern, stand_in in LIKE:
        text = re.sub(pattern, stand_in, text)
    return text.strip().splitlines()


class CommandShell:
    """A shell in a directory with the files that the documents mention."""

    def __init__(self, workspace: Workspace, **environ: str) -> None:
        self.directory = workspace.directory / "desk"
        self.directory.mkdir()
        for name in ("kubeconfig", "DISCOVERY_KUBECONFIG"):
            (self.directory / name).write_text(workspace.kubeconfig.read_text())
        self._done: set[str] = set()
        self._environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "MILO_DISCOVERY_ADDRESS": workspace.address,
            "MILO_DISCOVERYD_DISCOVERY_KUBECONFIG": str(workspace.kubeconfig),
            **environ,
        }

    async def type(self, block: Block) -> AsyncIterator[str]:
        """Run a block; yield commands that failed, and output that differs from the document."""
        for command in block.commands:
            ours = {shlex.join(part) for part in command.parts() if way(block, part) is Way.TYPED}
            for text in [command.text] if command.shown else sorted(ours - self._done):
                self._done.add(text)
                status, said = await self._typed(re.sub(r"\b(CLUSTER|my-project)\b", "swift-dune", text))
                shown, *cut = re.split(r"^\.\.\.$", command.shown, flags=re.MULTILINE)
                came = alike(said)[: len(alike(shown))] if cut else alike(said)
                if came != alike(shown) if shown else status:
                    yield f"{block}\n{text} exited with {status}:\n{said}"

    async def _typed(self, text: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", text, cwd=self.directory, env=self._environ, stdout=PIPE, stderr=STDOUT
        )
        async with asyncio.timeout(LIMIT_S):
            said, _ = await process.communicate()
        return process.returncode, said.decode()


OWN_IDENTITY = {"name": "own", "type": "project-kubeconfig", "share_discovery_identity": True}


async def test_documented_commands_print_the_documented_output(workspace: Workspace) -> None:
    kubectl()  # some commands need kubectl
    workspace.sandbox.projects.create("gentle-geyser", ready=True, organization="acme")
    workspace.sandbox.projects.create("swift-dune", ready=True, organization="fernweh")
    desk = CommandShell(workspace, MILO_DISCOVERYD_LISTEN=workspace.address, MILO_DISCOVERYD_HTTP_LISTEN="127.0.0.1:0")
    [operator] = blocks(ROOT / "docs" / "admission.md", "python")
    (desk.directory / "my_operator.py").write_text(operator)
    (desk.directory / "ca.crt").write_text("a CA")
    async with workspace.daemon(kubeconfigs={"issuers": [OWN_IDENTITY]}) as daemon:
        await daemon.start()
        wrong = [problem for block in TYPED if block != RULES for problem in [_ async for _ in desk.type(block)]]
    assert wrong == [], "\n\n".join(wrong)


async def test_documented_output_of_check_as_matches_the_documented_rules(workspace: Workspace) -> None:
    for name in ("shop-blog", "shop-search", "shop-web"):
        workspace.sandbox.projects.create(name, ready=True, organization="shop", labels={"env": "prod"})
    for number in range(9):
        workspace.sandbox.projects.create(f"other-{number}", ready=True, labels={"env": "prod"})
    [rules] = (text for text in blocks(RULES.document, "yaml") if "name: auditors" in text)
    sources = [{"name": "viewer", "type": "kubeconfig-secret"}]
    desk = CommandShell(workspace)
    config = {**yaml.safe_load(rules), "kubeconfigs": {"issuers": sources}}
    (desk.directory / "config.yaml").write_text(yaml.safe_dump(config))
    wrong = [problem async for problem in desk.type(RULES)]
    assert wrong == [], "\n\n".join(wrong)


@pytest.mark.parametrize("words", documented_commands(Way.BUILT), ids=joined)
def test_documented_kustomizations_are_built_by_tests(words: Sequence[str]) -> None:
    assert ROOT / words[-1] in (*BUILT, *TENANTS)


@pytest.mark.parametrize("words", documented_commands(Way.IN_A_CLUSTER), ids=joined)
async def test_documented_kubectl_commands_and_flags_exist(words: Sequence[str]) -> None:
    given = [*words, "--", "true"] if "exec" in words else words
    process = await asyncio.create_subprocess_exec(
        kubectl(), "--server=http://127.0.0.1:1", *given[1:], stdout=PIPE, stderr=STDOUT
    )
    async with asyncio.timeout(LIMIT_S):
        said, _ = await process.communicate()
    assert "refused" in said.decode()


class ArgumentsParsed(Exception):  # noqa: N818 - not an error, but the expected end
    """Raised once the arguments have been parsed."""


@pytest.mark.parametrize(
    "words", [words for words in documented_commands(Way.LASTING) if words[0] == "./dev"], ids=joined
)
def test_arguments_of_documented_long_running_commands_are_accepted(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, verb, *given = words
    [does] = re.findall(rf"^{verb}\) (.*) ;;$", (ROOT / "dev").read_text(), re.MULTILINE)
    if verb == "test":
        selected = {after for option, after in pairwise(given) if option in {"-k", "-m"}}
        paths = [word for word in given if not word.startswith("-") and word not in selected]
        assert [path for path in paths if not (ROOT / path).exists()] == []
        return
    if verb == "python":
        [_, module, *given] = given
    elif tool := re.search(r'(tools)/(\w+)\.py "\$@"', does):
        module = ".".join(tool.groups())
    elif run := re.search(r'-m (\S+) "\$@"', does):
        module = run[1]
    else:
        assert given == []
        return

    read = argparse.ArgumentParser.parse_args

    def only(parser: argparse.ArgumentParser, *arguments: Sequence[str]) -> NoReturn:
        read(parser, *arguments)
        raise ArgumentsParsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only)
    monkeypatch.setattr(sys, "argv", [module, *given])
    package = importlib.util.find_spec(module)
    assert package is not None
    main = importlib.import_module(f"{module}.__main__" if package.submodule_search_locations else module).main
    with pytest.raises(ArgumentsParsed):
        main(*([given] if inspect.signature(main).parameters else []))


@pytest.mark.parametrize("words", documented_commands(Way.PUBLISHING), ids=joined)
def test_arguments_of_documented_publisher_commands_are_accepted(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def only(*_: object) -> NoReturn:
        raise ArgumentsParsed

    monkeypatch.setattr("milo_publishing.command._run", only)
    with pytest.raises(ArgumentsParsed):
        client.command.main([*words[1:]], standalone_mode=False)


@pytest.mark.parametrize("words", documented_commands(Way.FOUND), ids=joined)
def test_documented_log_events_exist(words: Sequence[str]) -> None:
    event = re.compile(rf"log\.\w+\(\s*\"[^\"]*{words[-1].strip(chr(34))}")
    assert any(event.search(path.read_text()) for path in (ROOT / "milo_discoveryd").rglob("*.py"))


@pytest.mark.parametrize("words", documented_commands(Way.CALLED), ids=joined)
def test_documented_grpc_methods_exist(words: Sequence[str]) -> None:
    service, _, method = words[-1].rpartition("/")
    described = pb.DESCRIPTOR.services_by_name["DiscoveryService"]
    assert words[-1] == "list" or (service == described.full_name and method in described.methods_by_name)


PYTHON = [
    (document, number)
    for document in DOCUMENTS
    if document != ROOT / "README.md"  # the block whose program is run at the end of test_readme
    for number, text in enumerate(blocks(document, "python"))
    if "asyncio.run(main())" in text and "print(" in text and "while True" not in text
]


@pytest.mark.parametrize(
    ("document", "number"), PYTHON, ids=lambda case: case.name if isinstance(case, Path) else str(case)
)
async def test_documented_programs_report_an_engaged_cluster(document: Path, number: int, workspace: Workspace) -> None:
    workspace.sandbox.projects.create("alpha", ready=True, labels={"env": "prod"})
    greeted = {"metadata": {"name": "one", "labels": {"greet": "yes"}}}  # the object that some of the programs wait for
    workspace.sandbox.control_plane("alpha").create(CONFIG_MAPS, greeted, namespace="default")
    own_cluster = workspace.directory / "own-cluster.kubeconfig"
    own_cluster.write_text(json.dumps(workspace.sandbox.kubeconfig(project="alpha")))
    environ = {**os.environ, "MILO_DISCOVERY_ADDRESS": workspace.address, "KUBECONFIG": str(own_cluster)}
    async with workspace.daemon(kubeconfigs={"issuers": [OWN_IDENTITY]}) as daemon:
        await daemon.start()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-c", blocks(document, "python")[number], env=environ, stdout=PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(LIMIT_S):
                assert b"alpha" in await process.stdout.readline()
        finally:
            process.kill()
            await process.wait()
