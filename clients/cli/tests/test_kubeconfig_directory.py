"""Tests of the kubeconfig directory: files that it writes, replaces and removes, and foreign files that it keeps."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from clients.python.tests.kubeconfigs import text
from milo_discovery import Cluster, Kubeconfig
from milo_discovery.kubeconfig_access import read_access
from milo_discovery_cli import atomic_files
from milo_discovery_cli.exit_status import CommandFailure
from milo_discovery_cli.kubeconfig_directory import DesiredFile, KubeconfigDirectory


def wanted(name: str, content: str | None = "k", *, uid: str = "u", **fields: object) -> dict[str, DesiredFile]:
    cluster = Cluster(name=name, uid=uid, **fields)  # type: ignore[arg-type]
    return {
        name: DesiredFile(
            cluster, None if content is None else Kubeconfig(cluster=name, kubeconfig=text(token=content))
        )
    }


def files(path: Path) -> dict[str, str | None]:
    return {file.name: read_access(file.read_bytes()).token for file in path.glob("*.kubeconfig")}


def index(path: Path) -> list[str]:
    return [entry["file"] for entry in json.loads((path / "index.json").read_text())["clusters"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clusters"


def test_kubeconfig_directory_has_a_file_per_cluster_and_an_index(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("b") | wanted("a", organization="acme", labels={"env": "prod"}), ended={})
    assert files(path) == {"a.kubeconfig": "k", "b.kubeconfig": "k"}
    entry = json.loads((path / "index.json").read_text())["clusters"][0]
    labels = {"env": "prod"}
    assert entry == {
        "name": "a", "uid": "u", "file": "a.kubeconfig", "endpoint": "", "organization": "acme", "labels": labels,
    }  # fmt: skip


def test_kubeconfig_directory_and_files_are_private(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_only_the_renewed_kubeconfig_file_is_replaced(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a") | wanted("b"), ended={})
        before = {file.name: file.stat().st_ino for file in path.iterdir()}
        held = (path / "a.kubeconfig").open("rb")
        directory.reconcile(wanted("a", "next") | wanted("b"), ended={})
    after = {file.name: file.stat().st_ino for file in path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"a.kubeconfig"}
    with held:
        assert read_access(held.read()).token == "k"
    assert files(path)["a.kubeconfig"] == "next"


def test_kubeconfig_file_of_a_disengaged_cluster_is_removed(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a") | wanted("b"), ended={})
        directory.reconcile(wanted("b"), ended={"a": "u"})
    assert list(files(path)) == index(path) == ["b.kubeconfig"]


def test_end_of_another_cluster_of_its_name_removes_no_kubeconfig_file(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
        directory.reconcile({}, ended={"a": "another"})
        assert list(files(path)) == ["a.kubeconfig"]
        assert (directory.uid("a"), directory.uid("b")) == ("u", "")


def test_kubeconfig_file_whose_cluster_is_unknown_is_replaced_by_that_of_a_cluster_of_its_name(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a", uid=""), ended={})
        directory.reconcile(wanted("a", "next", uid="u"), ended={})
        assert (files(path), directory.uid("a")) == ({"a.kubeconfig": "next"}, "u")


def test_missing_cluster_keeps_its_kubeconfig_file_until_it_is_disengaged(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("b"), ended={})
        assert sorted(files(path)) == index(path) == ["a.kubeconfig", "b.kubeconfig"]
        directory.reconcile(wanted("b"), ended={"a": "u", "b": "u"})
    assert list(files(path)) == index(path) == ["b.kubeconfig"]


def test_file_of_a_cluster_that_was_replaced_between_two_runs_is_removed_once_it_is_known_to_have_ended(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a") | wanted("b"), ended={})
    with KubeconfigDirectory(path) as directory:
        for content in (None, "new"):
            directory.reconcile(wanted("a", None) | wanted("b", content, uid="next"), ended={"b": "another"})
            assert files(path) == {"a.kubeconfig": "k", "b.kubeconfig": "k"}
            assert directory.uid("b") == "u"
        directory.reconcile(wanted("a", None) | wanted("b", None, uid="next"), ended={"a": "u", "b": "u"})
        assert list(files(path)) == index(path) == ["a.kubeconfig"], "a has the cluster of its file, and b has not"
        directory.reconcile(wanted("a", None) | wanted("b", "new", uid="next"), ended={})
    assert files(path) == {"a.kubeconfig": "k", "b.kubeconfig": "new"}


def test_kubeconfig_ledger_records_shard_group_and_filter(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.claim("dns", "-l a=b")
        assert directory.difference("", "") == "", "the directory has no files yet"
        directory.reconcile(wanted("a"), ended={})
    with KubeconfigDirectory(path) as directory:
        assert directory.difference("dns", "-l a=b") == ""
        assert directory.difference("", "-l a=b") == (
            "belongs to the shard group 'dns', but this daemon belongs to no shard group"
        )
        assert directory.difference("dns", "") == "was written with the filter `-l a=b`, but this run has no filter"


def test_kubeconfig_ledger_of_an_earlier_version_is_upgraded(path: Path):
    path.mkdir()
    ledger = path / ".milo-discovery.json"
    ledger.write_text('{"files": ["a"], "index": true}')
    with KubeconfigDirectory(path) as directory:
        assert directory.own == {"a"}
        assert directory.difference("dns", "-l a=b") == ""
        directory.claim("dns", "-l a=b")
        directory.reconcile({}, ended={})
    assert json.loads(ledger.read_text()) == {
        "files": ["a"],
        "index": True,
        "group": "dns",
        "filter": "-l a=b",
        "removals": {"held": False, "created": [], "removed": []},
    }


def test_cluster_without_a_kubeconfig_has_no_kubeconfig_file(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a", None), ended={})
        assert files(path) == {}
        assert index(path) == []
        directory.reconcile(wanted("a"), ended={})
    assert index(path) == ["a.kubeconfig"]


def test_replaced_cluster_does_not_inherit_kubeconfig_file(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
        directory.reconcile(wanted("a", "later", uid="later"), ended={})
        assert (files(path), directory.uid("a")) == ({"a.kubeconfig": "k"}, "u")
        directory.reconcile(wanted("a", None, uid="later"), ended={"a": "u"})
        assert files(path) == {}
        directory.reconcile(wanted("a", "later", uid="later"), ended={})
    assert files(path) == {"a.kubeconfig": "later"}


def test_kubeconfig_directory_neither_replaces_nor_removes_foreign_file(path: Path):
    path.mkdir()
    mine = text(token="mine")
    (path / "a.kubeconfig").write_bytes(mine)
    (path / "notes.txt").write_text("mine")
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
        assert "was not written by" in directory.skipped["a"]
        directory.reconcile({}, ended={"a": "u"})
    assert (path / "a.kubeconfig").read_bytes() == mine
    assert (path / "notes.txt").exists()


def test_kubeconfig_directory_does_not_follow_foreign_symlink(path: Path, tmp_path: Path):
    path.mkdir()
    (path / "a.kubeconfig").symlink_to(tmp_path / "elsewhere")
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
    assert not (tmp_path / "elsewhere").exists()


def test_kubeconfig_file_name_of_a_cluster_contains_its_source(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("eu#a") | wanted("us#a"), ended={})
        assert directory.skipped == {}
    assert {"eu#a.kubeconfig", "us#a.kubeconfig"} < {file.name for file in path.iterdir()}
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("eu#a"), ended={"us#a": "u"})
        assert directory.own == {"eu#a"}


@pytest.mark.parametrize(
    "name",
    ["..", "../a", "a/b", "", ".a", "a\n", "A", "a" * 300, "a..b", "a\0b", "#a", "a#", "a#b#c", "../a#b", "a#../b"],
)
def test_cluster_whose_name_is_not_a_dns_name_has_no_kubeconfig_file(path: Path, name: str):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted(name) | wanted("a"), ended={})
        assert directory.skipped == {name: "the name is not a DNS name of at most 244 characters"}
    assert sorted(file.name for file in path.iterdir()) == [".milo-discovery.json", "a.kubeconfig", "index.json"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_temporary_files_of_a_killed_process_are_removed(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a") | wanted("b"), ended={})
    (path / ".milo-discovery-x1.new").write_text("half a f")
    (path / "index.json").unlink()
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("b"), ended={"a": ""})
    assert sorted(file.name for file in path.iterdir()) == [".milo-discovery.json", "b.kubeconfig", "index.json"]


def test_kubeconfig_directory_locked_by_another_process_is_rejected(path: Path):
    with KubeconfigDirectory(path), pytest.raises(CommandFailure, match="locked by another"):
        KubeconfigDirectory(path).__enter__()
    with KubeconfigDirectory(path):
        pass


def test_kubeconfig_ledger_of_another_user_is_rejected(path: Path, monkeypatch):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile({}, ended={})
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CommandFailure, match=r"\.milo-discovery\.json is owned by uid"), KubeconfigDirectory(path):
        pass


def test_corrupt_kubeconfig_ledger_is_rejected(path: Path):
    path.mkdir()
    (path / ".milo-discovery.json").write_text("{")
    with pytest.raises(CommandFailure, match="is corrupt"):
        KubeconfigDirectory(path).__enter__()


def test_ledger_and_index_are_not_empty_after_a_loss_of_power(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Found by a reader: with an empty ledger, `sync` refuses the directory until an administrator empties it."""
    on_disk: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda file: on_disk.add(os.fstat(file).st_ino))
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
        directory.reconcile(wanted("b"), ended={"a": "u"})
    assert {(path / name).stat().st_ino for name in (".milo-discovery.json", "index.json")} <= on_disk


@pytest.mark.parametrize("ledger", ["[]", "{}", '{"files": 1}'])
def test_malformed_kubeconfig_ledger_is_rejected(path: Path, ledger: str):
    path.mkdir()
    (path / ".milo-discovery.json").write_text(ledger)
    with pytest.raises(CommandFailure, match="is corrupt"):
        KubeconfigDirectory(path).__enter__()


def test_kubeconfig_directory_neither_replaces_nor_removes_foreign_index(path: Path):
    path.mkdir()
    (path / "index.json").write_text("mine")
    with pytest.raises(CommandFailure, match="was not written by milo-discovery sync"):
        KubeconfigDirectory(path).__enter__()
    assert [file.name for file in path.iterdir()] == ["index.json"]
    assert (path / "index.json").read_text() == "mine"


def test_user_of_a_written_kubeconfig_has_only_the_token(path: Path):
    with KubeconfigDirectory(path) as directory:
        directory.reconcile(wanted("a"), ended={})
    document = json.loads((path / "a.kubeconfig").read_bytes())
    assert document["users"] == [{"name": "a", "user": {"token": "k"}}]


def test_failed_kubeconfig_ledger_write_is_retried(path: Path, monkeypatch):
    with KubeconfigDirectory(path) as directory:
        with monkeypatch.context() as full:
            full.setattr(atomic_files, "replace", _disk_full)
            with pytest.raises(OSError, match="No space"):
                directory.reconcile(wanted("a"), ended={})
        directory.reconcile(wanted("a"), ended={})
    assert json.loads((path / ".milo-discovery.json").read_text())["files"] == ["a"]
    assert list(files(path)) == index(path) == ["a.kubeconfig"]


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
