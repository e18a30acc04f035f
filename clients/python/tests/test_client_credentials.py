"""Tests of client credentials: files that are reread, and combinations that are refused."""

from __future__ import annotations

import pytest

from milo_discovery import ClientCredentials, DiscoveryClient, InvalidCredentials, SyncDiscoveryClient


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def test_token_file_is_read_for_each_call(token_file):
    credentials = ClientCredentials(token_file=token_file)
    assert credentials.metadata() == (("authorization", "Bearer first"),)
    token_file.write_text("second")
    assert credentials.metadata() == (("authorization", "Bearer second"),)


def test_default_client_credentials_are_empty():
    credentials = ClientCredentials()
    credentials.check("unix:///d.sock")
    credentials.check("localhost:1")
    assert credentials.metadata() == ()
    assert credentials.channel_credentials() is None


@pytest.mark.parametrize("content", [b"\0\0\0\0", b"to\x7fken", b"to\tken", b"to\nken", b"\xff"])
def test_token_that_is_not_one_line_of_printable_ascii_is_refused(token_file, content):
    token_file.write_bytes(content)
    with pytest.raises(InvalidCredentials, match="does not contain a token"):
        ClientCredentials(token_file=token_file).metadata()


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"certificate_file": "a", "ca_file": "b"}, "must be set together"),
        ({"key_file": "a", "ca_file": "b"}, "must be set together"),
        ({"certificate_file": "a", "key_file": "b"}, "needs TLS: set ca_file"),
    ],
)
def test_incomplete_combination_of_credential_files_is_rejected(files, complaint):
    with pytest.raises(InvalidCredentials, match=complaint):
        ClientCredentials(**files)


@pytest.mark.parametrize("client", [DiscoveryClient, SyncDiscoveryClient])
def test_token_without_tls_is_refused_over_tcp(client, token_file):
    with pytest.raises(InvalidCredentials, match="would be sent to localhost:1 unencrypted"):
        client("localhost:1", credentials=ClientCredentials(token_file=token_file))
    client("unix:///d.sock", credentials=ClientCredentials(token_file=token_file))
    with pytest.raises(InvalidCredentials, match="is a Unix socket"):
        client("unix:///d.sock", credentials=ClientCredentials(ca_file="ca"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b" \n", "is empty"),
        (b"a\nb", "does not contain a token"),
        ("ä".encode(), "does not contain a token"),
    ],
)
async def test_error_for_an_invalid_token_file_names_the_file(content, complaint, tmp_path):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    async with DiscoveryClient("unix:///nowhere.sock", credentials=ClientCredentials(token_file=path)) as client:
        with pytest.raises(InvalidCredentials, match=rf"token:? {complaint}"):
            await client.list()


def test_credential_files_come_from_the_environment(monkeypatch, token_file):
    monkeypatch.setenv("MILO_DISCOVERY_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("MILO_DISCOVERY_CA_FILE", "/ca")
    monkeypatch.setenv("MILO_DISCOVERY_KEY_FILE", "")
    assert ClientCredentials.from_environment() == ClientCredentials(token_file=str(token_file), ca_file="/ca")
