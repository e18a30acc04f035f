"""Commands in the documents are ones that there are, and programs in them run."""

import asyncio
import os
import shlex
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import click
import pytest

from milo_discovery import cli as client
from milo_discoveryd import cli as daemon
from tests.docs.stranger import blocks
from tests.docs.test_links import DOCUMENTS, ROOT
from tests.process.conftest import Place, folder, place

__all__ = ["folder", "place"]

PROGRAMS = {
    name: next(each for each in vars(module).values() if isinstance(each, click.Group))
    for name, module in (("milo-discoveryd", daemon), ("milo-discovery", client))
}


def commands(document: Path) -> list[list[str]]:
    """By words; what is said after a pipe, or within kubectl exec, is a command of its own."""
    found = []
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for separator in ("|", "&&", "--"):
                words = [";" if word == separator else word for word in words]
            found += [part.split("\0") for part in "\0".join(words).split("\0;\0") if part]
    return found


SAID = [(document, words) for document in DOCUMENTS for words in commands(document)]
OURS = [(document, words) for document, words in SAID if words[0] in PROGRAMS]
BUILDS = [
    (document, words)
    for document, words in SAID
    if words[0] == "kubectl" and ("-k" in words or words[1] == "kustomize")
]


def names(case: object) -> str:
    return case.name if isinstance(case, Path) else " ".join(case) if isinstance(case, list) else ""


@pytest.mark.parametrize(("document", "words"), OURS, ids=names)
def test_our_commands_take_what_they_are_given(document: Path, words: list[str]) -> None:
    program, name, *arguments = words
    group = PROGRAMS[program]
    context = group.make_context(program, [name, *arguments])
    command = group.get_command(context, name)
    assert command is not None, name
    command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize(("document", "words"), BUILDS, ids=names)
def test_what_is_to_be_applied_is_there(document: Path, words: list[str]) -> None:
    assert (ROOT / words[-1] / "kustomization.yaml").exists()


PYTHON = [
    (document, number)
    for document in DOCUMENTS
    for number, text in enumerate(blocks(document, "python"))
    if "asyncio.run(main())" in text and "while True" not in text
]


@pytest.mark.parametrize(("document", "number"), PYTHON, ids=lambda case: names(case) or str(case))
async def test_programs_in_the_documents_tell_of_a_cluster_that_is_engaged(
    document: Path, number: int, place: Place
) -> None:
    place.sandbox.projects.create("alpha", ready=True, labels={"env": "prod"})
    async with place.daemon() as daemon:
        await daemon.start()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-u", "-c", blocks(document, "python")[number],
            env={**os.environ, "MILO_DISCOVERY_ADDRESS": place.address}, stdout=PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                assert b"alpha" in await process.stdout.readline()
        finally:
            process.kill()
            await process.wait()
