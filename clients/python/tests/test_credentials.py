"""What a client shows: from files, read again each time, and never where it must not be shown."""

from __future__ import annotations

import pytest

from milo_discovery import ClientCredentials, DiscoveryClient, InvalidCredentials, SyncDiscoveryClient


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def test_a_token_is_read_for_each_call(token_file):
    credentials = ClientCredentials(token_file=token_file)
    assert credentials.metadata() == (("authorization", "Bearer first"),)
    token_file.write_text("second")
    assert credentials.metadata() == (("authorization", "Bearer second"),)


def test_nothing_is_shown_by_default():
    credentials = ClientCredentials()
    credentials.check("unix:///d.sock")
    credentials.check("localhost:1")
    assert credentials.metadata() == ()
    assert credentials.channel_credentials() is None


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"certificate_file": "a", "ca_file": "b"}, "a certificate and its key come together"),
        ({"key_file": "a", "ca_file": "b"}, "a certificate and its key come together"),
        ({"certificate_file": "a", "key_file": "b"}, "needs the CA of the daemon"),
    ],
)
def test_files_that_are_of_no_use_alone_are_refused(files, complaint):
    with pytest.raises(InvalidCredentials, match=complaint):
        ClientCredentials(**files)


@pytest.mark.parametrize("client", [DiscoveryClient, SyncDiscoveryClient])
def test_a_token_is_not_sent_in_the_clear_over_a_network(client, token_file):
    with pytest.raises(InvalidCredentials, match="a token isn't sent to localhost:1 in the clear"):
        client("localhost:1", credentials=ClientCredentials(token_file=token_file))
    client("unix:///d.sock", credentials=ClientCredentials(token_file=token_file))
    with pytest.raises(InvalidCredentials, match="is a Unix socket"):
        client("unix:///d.sock", credentials=ClientCredentials(ca_file="ca"))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "can't be read: No such file"), (b" \n", "is empty"), (b"a\nb", "no token"), ("ä".encode(), "no token")],
)
async def test_a_file_without_a_token_fails_the_call_with_its_name(content, complaint, tmp_path):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    async with DiscoveryClient("unix:///nowhere.sock", credentials=ClientCredentials(token_file=path)) as client:
        with pytest.raises(InvalidCredentials, match=rf"token .*{complaint}|token holds {complaint}"):
            await client.list()


def test_the_environment_names_the_files(monkeypatch, token_file):
    monkeypatch.setenv("MILO_DISCOVERY_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("MILO_DISCOVERY_CA_FILE", "/ca")
    monkeypatch.setenv("MILO_DISCOVERY_KEY_FILE", "")
    assert ClientCredentials.from_environment() == ClientCredentials(token_file=str(token_file), ca_file="/ca")
