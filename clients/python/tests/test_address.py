"""Tests of valid and malformed addresses of the daemon."""

from __future__ import annotations

import re

import pytest

from milo_discovery import ADDRESS_VARIABLE, DEFAULT_ADDRESS, InvalidAddress
from milo_discovery.address import grpc_target


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)


@pytest.mark.parametrize(
    "address", ["unix:///run/d.sock", "localhost:8080", "127.0.0.1:1", "[::1]:65535", "milo-discoveryd.example:443"]
)
def test_unix_socket_or_host_and_port_is_a_valid_address(address):
    assert grpc_target(address) == address


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("/run/d.sock", "unix:///run/d.sock"),
        ("unix:/run/d.sock", "unix:///run/d.sock"),
        ("insecure:///run/d.sock", "unix:///run/d.sock"),
        ("INSECURE://localhost:8080", "localhost:8080"),
        ("https://localhost:8080/", "localhost:8080"),
        ("http://localhost:8080", "localhost:8080"),
        ("tcp://[::1]:80", "[::1]:80"),
    ],
)
def test_error_for_an_address_with_a_foreign_scheme_suggests_a_valid_address(address, meant):
    with pytest.raises(InvalidAddress, match=re.escape(f"; did you mean {meant}?")):
        grpc_target(address)
    assert grpc_target(meant) == meant


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
        ("localhost:0", "the port must be between 1 and 65535"),
        ("localhost:65536", "the port must be between 1 and 65535"),
        ("unix://run/d.sock", "the socket path must be absolute"),
        ("unix:///" + "x" * 107, "must not exceed 107 bytes"),
    ],
)
def test_malformed_address_is_refused_with_an_explanation(address, complaint):
    with pytest.raises(InvalidAddress, match=complaint):
        grpc_target(address)


def test_longest_valid_socket_path_is_accepted():
    assert grpc_target("unix:///" + "x" * 106)


def test_environment_variable_overrides_the_default_address(monkeypatch):
    assert grpc_target(None) == DEFAULT_ADDRESS
    monkeypatch.setenv(ADDRESS_VARIABLE, "localhost:1234")
    assert grpc_target(None) == "localhost:1234"
    monkeypatch.setenv(ADDRESS_VARIABLE, "")
    assert grpc_target(None) == DEFAULT_ADDRESS
