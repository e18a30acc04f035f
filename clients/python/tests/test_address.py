"""Addresses: two spellings, and every other one refused with what would be right."""

from __future__ import annotations

import pytest

from milo_discovery import ADDRESS_VARIABLE, DEFAULT_ADDRESS, InvalidAddress
from milo_discovery._address import target


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)


@pytest.mark.parametrize(
    "address", ["unix:///run/d.sock", "localhost:8080", "127.0.0.1:1", "[::1]:65535", "milo-discoveryd.example:443"]
)
def test_sockets_and_hosts_with_ports_are_addresses(address):
    assert target(address) == address


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("", "neither unix:///path/to/socket nor HOST:PORT"),
        ("localhost", "neither"),
        ("/run/d.sock", "neither"),
        ("unix:/run/d.sock", "neither"),
        ("https://localhost:8080", "neither"),
        ("localhost:8080\n", "neither"),
        ("::1:80", "neither"),
        ("localhost:0", "a port is a number from 1 to 65535"),
        ("localhost:65536", "a port is a number from 1 to 65535"),
        ("unix://run/d.sock", "a socket's path is absolute"),
        ("unix:///" + "x" * 107, "a socket's path has at most 107 bytes"),
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(address, complaint):
    with pytest.raises(InvalidAddress, match=complaint):
        target(address)


def test_the_longest_path_that_fits_a_socket_is_fine():
    assert target("unix:///" + "x" * 106)


def test_the_environment_stands_in_for_no_address(monkeypatch):
    assert target(None) == DEFAULT_ADDRESS
    monkeypatch.setenv(ADDRESS_VARIABLE, "localhost:1234")
    assert target(None) == "localhost:1234"
    monkeypatch.setenv(ADDRESS_VARIABLE, "")
    assert target(None) == DEFAULT_ADDRESS
