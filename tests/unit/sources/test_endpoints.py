"""Addresses of clusters that come from objects."""

import time

import pytest

from milo_discoveryd.sources.endpoints import checked_url
from milo_discoveryd.sources.reading import MalformedError


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://a.test\n",
        "https://a.test\r\n/x",
        "https://a.t\test",
        "\x00https://a.test",
        " https://a.test",
        "a.test\n",
    ],
)
def test_endpoint_with_spaces_or_control_characters_is_malformed(endpoint: str) -> None:
    """`urlsplit` removes such characters before it parses, but the endpoint would contain them."""
    with pytest.raises(MalformedError, match="is not of the form https://HOST"):
        checked_url(endpoint, ())


def test_endpoint_whose_normalization_takes_seconds_is_malformed_at_once() -> None:
    began = time.process_time()
    for scheme in ("", "https://"):
        with pytest.raises(MalformedError, match="is longer than 1024 characters"):
            checked_url(scheme + "a" + "\N{COMBINING CEDILLA}\N{COMBINING ACUTE ACCENT}" * 10_000, ())
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("host", ["10.0.5", "167772165", "0xa000005", "10.0x5", "127.1", "a.1", "010.0.0.05"])
def test_endpoint_host_that_resolvers_may_read_as_an_ip_address_is_malformed(host: str) -> None:
    for endpoint in (host, f"https://{host}", f"https://{host}:6443/x"):
        with pytest.raises(MalformedError, match="is not of the form https://HOST"):
            checked_url(endpoint, ())


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("10.0.0.5", "https://10.0.0.5"),
        ("a1.0x.test:6443", "https://a1.0x.test:6443"),
        ("1.a", "https://1.a"),
        ("fd00::1", "https://[fd00::1]"),
        ("https://a.test/prefix/", "https://a.test/prefix"),
    ],
)
def test_valid_endpoint_is_returned_as_url(endpoint: str, url: str) -> None:
    assert checked_url(endpoint, ()) == url
