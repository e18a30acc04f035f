"""The tests of the clients in Node and Java pass, with the runners of their languages."""

import pytest

from tests.end_to_end.conformance.clients import ToolMissing, java_packages
from tests.end_to_end.examples.building import node_packages, run, tool

pytestmark = [pytest.mark.builds, pytest.mark.timeout(1800)]  # the first build downloads libraries


def test_tests_of_the_node_client_pass() -> None:
    tool("openssl")  # makes the certificate of an API server
    run([tool("npm"), "test"], node_packages() / "clients/node")


def test_tests_of_the_java_client_pass() -> None:
    try:
        copy = java_packages()
    except ToolMissing as missing:
        pytest.skip(str(missing))
    run([tool("mvn"), "--quiet", "--batch-mode", "test"], copy / "clients/java")
