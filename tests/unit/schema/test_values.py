"""Parsing and validation of each kind of setting."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milo_discoveryd.schema import values
from milo_discoveryd.schema.values import InsecureAddress, TcpAddress, UnixAddress

ANY = {"least": timedelta(), "most": timedelta.max}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("1d", 86400), ("500ms", 0.5), ("1.5s", 1.5), ("0", 0), (" 2s ", 2)],
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert values.duration(text, **ANY) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "5 s", "1m1h", "five", "1e3s", "²s"])
def test_invalid_duration_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match='such as "30s", "5m" or "1h30m"'):
        values.duration(text, **ANY)


@pytest.mark.parametrize("text", ["0s", "500ms", "2h", "999999999999d", "9" * 400 + "s"])
def test_duration_out_of_range_reports_limits(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be between 1s and 1h$"):
        values.duration(text, least=timedelta(seconds=1), most=timedelta(hours=1))


@given(st.integers(0, 10**10))
def test_duration_round_trips(milliseconds: int) -> None:
    span = timedelta(milliseconds=milliseconds)
    assert values.duration(values.duration_text(span), **ANY) == span


@pytest.mark.parametrize(("text", "size"), [("1MiB", 1 << 20), ("64 KiB", 1 << 16), ("4096B", 4096), (4096, 4096)])
def test_size_is_parsed(text: object, size: int) -> None:
    assert values.size(text, least=0, most=1 << 30) == size


def test_invalid_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="with its unit"):
        values.size("1000", least=0, most=1 << 30)
    with pytest.raises(ValueError, match="must be between 1MiB and 1GiB"):
        values.size("2GiB", least=1 << 20, most=1 << 30)


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("660", 0o660), ("0600", 0o600), (0o660, 0o660)])
def test_socket_permissions_are_parsed_as_octal(text: object, mode: int) -> None:
    assert values.permissions(text) == mode


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("rw-", "in octal"), ("0999", "in octal"), ("66", "in octal"), ("0060", "the owner"), ("0666", "world-writable")],
)
def test_invalid_or_insecure_socket_permissions_are_rejected(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        values.permissions(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:///run/a.sock", UnixAddress(Path("/run/a.sock"))),
        ("unix:/run/a.sock", UnixAddress(Path("/run/a.sock"))),
        ("10.0.0.1:80", TcpAddress("10.0.0.1", 80)),
        (":80", TcpAddress("", 80)),
        ("insecure://127.8.0.1:0", InsecureAddress("127.8.0.1", 0)),
        ("insecure://localhost:80", InsecureAddress("localhost", 80)),
        ("insecure://[::1]:80", InsecureAddress("::1", 80)),
    ],
)
def test_listen_address_is_unix_path_or_tcp_address(text: str, address: values.ListenAddress) -> None:
    assert values.listen_address(text) == address
    assert values.listen_address(str(address)) == address
    assert values.listen_address(address) is address


@pytest.mark.parametrize("text", ["0.0.0.0:80", ":80", "10.0.0.1:80", "[::]:80", "milo.example.com:80"])
def test_insecure_address_must_be_loopback(text: str) -> None:
    with pytest.raises(
        ValueError, match='is not on loopback, so the traffic would be readable on the network: remove "insecure://"'
    ):
        values.listen_address(f"insecure://{text}")


@pytest.mark.parametrize("text", ["unix:", "unix://", "unix://relative", "unix:///dir/", "unix:///a\0b"])
def test_unix_address_requires_absolute_path(text: str) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        values.listen_address(text)


def test_unix_path_length_is_limited_by_the_system() -> None:
    longest = "/" + "ä" * 53
    assert values.listen_address(f"unix://{longest}") == UnixAddress(Path(longest))
    with pytest.raises(ValueError, match="a path of 108 bytes; the maximum for a Unix socket is 107"):
        values.listen_address(f"unix://{longest}b")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("9464", "HOST:PORT"),
        ("host:", "HOST:PORT"),
        ("host:port", "HOST:PORT"),
        ("http://host:80", "HOST:PORT"),
        ("::1:80", "HOST:PORT"),
        ("host:70000", "65535"),
        ("[::g]:80", "HOST:PORT"),
        ("[1:2]:80", "IPv6"),
        ("-host:80", "hostname"),
        ("127.0.0.1:80\n", "HOST:PORT"),
    ],
)
def test_invalid_listen_address_is_rejected(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        values.tcp_address(text)


def test_tcp_address_may_omit_the_host() -> None:
    assert values.tcp_address(":9464") == TcpAddress("", 9464)
    assert values.tcp_address("[::]:9464") == TcpAddress("::", 9464)


@pytest.mark.parametrize(
    "template",
    ["milo-apiserver.{namespace}.svc.cluster.local:6443", "{name}.example.com", "api-{uid}:443", "{name}:6443"],
)
def test_address_template_is_host_with_optional_port(template: str) -> None:
    assert values.address_template(template) == template


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("https://{name}", "no scheme, no path"),
        ("{name}/path", "no scheme, no path"),
        ("{name}:port", "no scheme, no path"),
        ("{name} b", "no scheme, no path"),
        ("", "no scheme, no path"),
        (":6443", "no scheme, no path"),
        ("{project}.svc", "{name}, {uid}, {namespace}"),
        ("{name.__class__}.svc", "{name}, {uid}, {namespace}"),
        ("{name!r}.svc", 'a format or a conversion in the placeholder "name": write {name}'),
        ("{name:>9}.svc", 'a format or a conversion in the placeholder "name": write {name}'),
        ("{}.svc", "{name}, {uid}, {namespace}"),
        ("{name.svc", "brace"),
    ],
)
def test_invalid_address_template_is_rejected(template: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        values.address_template(template)


def test_namespace_template_must_yield_a_valid_namespace_name() -> None:
    assert values.namespace_template("project-{uid}") == "project-{uid}"
    for wrong in ("Project-{name}", "a.{name}", "{namespace}", "-{name}"):
        with pytest.raises(ValueError, match=r"must be the name|unknown placeholder"):
            values.namespace_template(wrong)


def test_mapping_is_parsed_from_key_value_pairs() -> None:
    assert values.pairs("a=b, c=d=e") == {"a": "b", "c": "d=e"}
    assert values.pairs({"a": "b"}) == {"a": "b"}
    for wrong in ("a", 5):
        with pytest.raises(ValueError, match=r"key=value|mapping"):
            values.pairs(wrong)


def test_list_is_parsed_from_comma_separated_words() -> None:
    assert values.words("a, b,,") == ("a", "b")
    assert values.words(["a", "b"]) == ("a", "b")
    with pytest.raises(ValueError, match="a list"):
        values.words({"a": "b"})


def test_file_path_may_be_empty_and_expands_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert values.file_path("") is None
    assert values.file_path(None) is None
    assert values.file_path("~/.kube/config") == Path("/home/somebody/.kube/config")
    with pytest.raises(ValueError, match="path without NUL characters"):
        values.file_path("a\0b")


def test_cluster_name_of_single_mode_must_be_a_dns_label() -> None:
    assert values.cluster_name("edge-1") == "edge-1"
    for wrong in ("Edge", "a" * 64, "a\n", "../x", ""):
        with pytest.raises(ValueError, match="lowercase letters"):
            values.cluster_name(wrong)
