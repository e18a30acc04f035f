"""A node with the images of this tree, for all tests of the session, which are skipped where it cannot run."""

import os
from collections.abc import Iterator

import pytest

from tests.end_to_end.cluster import parts
from tests.end_to_end.cluster.__main__ import say
from tests.end_to_end.cluster.node import Node, missing


@pytest.fixture(scope="session")
def node(pytestconfig: pytest.Config) -> Iterator[Node]:
    if lacking := missing():
        pytest.skip(f"a cluster {lacking}")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    node = Node(f"test-{os.getpid()}")
    with capture.global_and_fixture_disabled():
        archive = parts.images(parts.OURS, say)
        parts.programs(say)
    try:
        node.up(say)
        node.load(archive)
        yield node
    finally:
        node.down()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    properties = [
        user_property for report in reports if report.when == "call" for user_property in report.user_properties
    ]
    if rows := [str(value) for name, value in properties if name == "without an owner"]:
        terminalreporter.section("clusters without an owner")
        terminalreporter.write_line("\n".join(rows))
