"""Selection of the proxy from environment variables."""

import pytest

from milo_kube.http.proxy import environment_proxy

PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_proxy_is_selected_by_scheme(name: str) -> None:
    assert environment_proxy("https://milo.example.com", {name: PROXY}) == PROXY
    assert environment_proxy("http://milo.example.com", {name: PROXY}) is None


def test_proxy_without_scheme_is_http() -> None:
    assert environment_proxy("https://milo.example.com", {"HTTPS_PROXY": "proxy:3128"}) == "http://proxy:3128"


@pytest.mark.parametrize(
    "server", ["https://localhost:6443", "https://127.0.0.1", "https://127.1.2.3", "https://[::1]"]
)
def test_environment_proxy_never_applies_to_loopback(server: str) -> None:
    assert environment_proxy(server, {"HTTPS_PROXY": PROXY}) is None


@pytest.mark.parametrize(
    ("server", "no_proxy"),
    [
        ("https://10.96.0.1", "10.0.0.0/8"),
        ("https://10.96.0.1", "192.168.0.0/16, 10.96.0.1"),
        ("https://[fd00::1]:6443", "fd00::/8"),
        ("https://[fd00::1]:6443", "fd00::1"),
        ("https://[fd00::1]:6443", "[fd00::1]:6443"),
        ("https://milo.example.com", "example.com"),
        ("https://milo.example.com", ".example.com"),
        ("https://milo.example.com", "*.example.com"),
        ("https://milo.example.com", "MILO.example.com:443"),
        ("https://milo.example.com", "example.com:"),
        ("https://10.96.0.1", "10.96.0.1:"),
        ("https://milo.example.com.", "milo.example.com"),
        ("https://milo.example.com:6443", "milo.example.com:6443"),
        ("https://kubernetes.default.svc", ".svc,.cluster.local"),
        ("https://milo.example.com", "*"),
    ],
)
def test_server_in_the_no_proxy_variable_is_not_proxied(server: str, no_proxy: str) -> None:
    assert environment_proxy(server, {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy}) is None


@pytest.mark.parametrize(
    ("server", "no_proxy"),
    [
        ("https://11.96.0.1", "10.0.0.0/8"),
        ("https://milo.example.com", "10.0.0.0/8"),
        ("https://10.96.0.1", "not/cidr"),
        ("https://10.96.0.1", "10.0.0.0/255.0.0.0"),
        ("https://milo.example.com", ":443"),
        ("https://milo.example.com", "milo.example.com:\N{SUPERSCRIPT TWO}"),
        ("https://notexample.com", "example.com"),
        ("https://example.com", ".example.com"),
        ("https://milo.example.com:6443", "milo.example.com:443"),
        ("https://milo.example.com", " , "),
    ],
)
def test_server_outside_the_no_proxy_variable_is_proxied(server: str, no_proxy: str) -> None:
    assert environment_proxy(server, {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy}) == PROXY
