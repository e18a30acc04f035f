"""A node with the images of this tree, for all tests of the session, which are skipped where it cannot run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.end_to_end.cluster import parts
from tests.end_to_end.cluster.__main__ import say
from tests.end_to_end.cluster.node import Node, missing


@pytest.fixture(scope="session")
def node(pytestconfig: pytest.Config) -> Iterator[Node]:
    with a_node(pytestconfig, f"test-{os.getpid()}") as node:
        yield node


@contextmanager
def a_node(pytestconfig: pytest.Config, name: str) -> Iterator[Node]:
    if lacking := missing():
        pytest.skip(f"a cluster {lacking}")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    node = Node(name)
    with capture.global_and_fixture_disabled():
        archive = parts.images(parts.OURS, say)
    try:
        node.up(say)
        node.load(archive)
        yield node
    finally:
        node.down()


_SECTIONS = {
    "without an owner": "clusters without an owner",
    "chain": "projects with control planes of their own",
}
"""Titles of the tables, by the name of the property that has a row."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    properties = [
        user_property for report in reports if report.when == "call" for user_property in report.user_properties
    ]
    for section, title in _SECTIONS.items():
        if rows := [str(value) for name, value in properties if name == section]:
            terminalreporter.section(title)
            terminalreporter.write_line("\n".join(rows))
