"""Credentials in files that another process renews."""

import os
from pathlib import Path

import pytest

from milo_kube.credential import Credential, CredentialError, Secret, token_of
from milo_kube.credential_providers import FileOrigin, StaticCredential
from milo_kube.file_content import MAX_BYTES, SETTLED_S, FileContent
from tests.support.certificates import Authority
from tests.support.renamed_file import replace


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


async def obtained(origin: FileOrigin, refused: Credential | None = None) -> Credential:
    return await origin.obtain(refused=refused, is_due=True)


async def test_token_file_trailing_newline_is_stripped(path: Path) -> None:
    path.write_text("abc\n")
    assert await obtained(FileOrigin(token=FileContent(path))) == Credential(token=Secret("abc"))


async def test_replaced_token_file_is_noticed_and_read(path: Path) -> None:
    path.write_text("one")
    source = FileOrigin(token=FileContent(path))
    await obtained(source)
    assert not source.has_changed()
    replace(path, "two")
    assert source.has_changed()
    assert await obtained(source) == Credential(token=Secret("two"))


async def test_token_file_behind_replaced_symlink_is_read(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "token").write_text(version)
    current = tmp_path / "current"
    current.symlink_to("one")
    source = FileOrigin(token=FileContent(current / "token"))
    assert await obtained(source) == Credential(token=Secret("one"))
    current.unlink()
    current.symlink_to("two")
    assert await obtained(source) == Credential(token=Secret("two"))


def rewrite_unnoticed(path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewrite a file as on a file system whose timestamps are too coarse to show the change."""
    before = path.stat()
    path.write_text(content)
    monkeypatch.setattr(Path, "stat", lambda _: before)


def test_file_change_that_stat_does_not_show_is_read_within_a_minute(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    path.write_text("one")
    content = FileContent(path, clock)
    content.read()
    rewrite_unnoticed(path, "two", monkeypatch)
    clock.now = 59
    assert content.read() == b"one"
    clock.now = 60
    assert content.read() == b"two"


def test_file_written_in_place_takes_effect_once_it_stops_changing(path: Path) -> None:
    clock = Clock()
    path.write_text("one token")
    content = FileContent(path, clock)
    content.read()
    for half in ("another", "another tok", "another token"):
        path.write_text(half)
        clock.now = path.stat().st_mtime + SETTLED_S - 0.1
        assert content.read() == b"one token"
    clock.now += 0.2
    assert content.read() == b"another token"


def test_file_replaced_by_rename_takes_effect_at_once(path: Path) -> None:
    clock = Clock()
    path.write_text("one")
    content = FileContent(path, clock)
    content.read()
    replace(path, "two")
    clock.now = path.stat().st_mtime
    assert content.read() == b"two"


async def test_rejected_token_file_is_read_again_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("one")
    source = FileOrigin(token=FileContent(path))
    refused = await obtained(source)
    rewrite_unnoticed(path, "two", monkeypatch)
    assert await obtained(source, refused) == Credential(token=Secret("two"))


def test_last_valid_credential_is_kept_while_file_is_invalid(path: Path) -> None:
    path.write_text("good")
    content = FileContent(path)
    content.read()
    for worse in ("", "\n", "x" * (MAX_BYTES + 1)):
        replace(path, worse)
        assert content.read() == b"good"
    path.unlink()
    assert content.read() == b"good"
    replace(path, "better")
    os.utime(path, (0, 0))  # the new file can get the former one's inode, and then counts as written in place
    assert content.read() == b"better"


def test_credential_file_without_valid_content_is_reported_by_name(path: Path) -> None:
    content = FileContent(path)
    with pytest.raises(CredentialError, match=f"{path} cannot be read: No such file"):
        content.read()
    path.write_text("")
    with pytest.raises(CredentialError, match=f"{path} is empty"):
        content.read()
    path.unlink()
    path.mkdir()
    with pytest.raises(CredentialError, match="Is a directory"):
        content.read()


async def test_certificate_and_key_are_used_once_both_were_replaced(tmp_path: Path) -> None:
    authority, chain, key = Authority(), tmp_path / "tls.crt", tmp_path / "tls.key"
    one, two = authority.issue(), authority.issue()
    chain.write_bytes(one.certificate)
    key.write_bytes(one.key)
    origin = FileOrigin(fixed=Credential(token=Secret("t")), chain=FileContent(chain), key=FileContent(key))
    credential = await obtained(origin)
    assert credential.token == Secret("t")
    assert credential.certificate is not None
    assert (credential.certificate.chain, credential.certificate.key.reveal()) == (one.certificate, one.key.decode())
    replace(chain, two.certificate.decode())
    with pytest.raises(CredentialError, match="do not match"):
        await obtained(origin)
    replace(key, two.key.decode())
    assert origin.has_changed()
    renewed = (await obtained(origin)).certificate
    assert renewed is not None
    assert renewed.chain == two.certificate


async def test_static_credential_is_unchanged_when_rejected() -> None:
    credential = Credential(token=Secret("t"))
    source = StaticCredential(credential)
    assert await source.credential(within_s=1, refused=credential) is credential


@pytest.mark.parametrize("text", ["a b", "a\nb", "a\0b", "\x7f", "tök"])
def test_token_file_unsafe_for_header_is_rejected_and_not_shown(text: str) -> None:
    with pytest.raises(CredentialError, match="the token is not a bearer token") as raised:
        token_of(f"hunter2{text}", "the token")
    assert "hunter2" not in str(raised.value)


def test_empty_token_file_is_rejected() -> None:
    with pytest.raises(CredentialError, match="the token is empty"):
        token_of(" \n", "the token")


def test_pipe_is_not_waited_for(path: Path) -> None:
    path.write_text("one")
    file = FileContent(path)
    assert file.read() == b"one"
    path.unlink()
    os.mkfifo(path)
    assert file.read() == b"one"
    with pytest.raises(CredentialError, match="cannot be read: not a regular file"):
        FileContent(path).read()
