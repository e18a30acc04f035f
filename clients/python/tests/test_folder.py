"""The directory of kubeconfigs: what is in it when, and whose it is."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from milo_discovery import Cluster, Kubeconfig
from milo_discovery.cli.endings import Failed
from milo_discovery.cli.folder import Folder, Wanted


def wanted(name: str, content: str | None = "k", *, uid: str = "u", **fields: object) -> dict[str, Wanted]:
    cluster = Cluster(name=name, uid=uid, **fields)  # type: ignore[arg-type]  # as given
    return {name: Wanted(cluster, None if content is None else Kubeconfig(cluster=name, kubeconfig=content.encode()))}


def files(path: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in path.glob("*.kubeconfig")}


def index(path: Path) -> list[str]:
    return [each["file"] for each in json.loads((path / "index.json").read_text())["clusters"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clusters"


def test_there_is_a_file_for_each_cluster_and_an_index_of_them(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("b") | wanted("a", organization="acme", labels={"env": "prod"}), complete=True)
    assert files(path) == {"a.kubeconfig": "k", "b.kubeconfig": "k"}
    entry = json.loads((path / "index.json").read_text())["clusters"][0]
    labels = {"env": "prod"}
    assert entry == {
        "name": "a", "uid": "u", "file": "a.kubeconfig", "endpoint": "", "organization": "acme", "labels": labels,
    }  # fmt: skip


def test_all_is_its_owners_only(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("a"), complete=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.iterdir()} == {0o600}


def test_a_renewed_file_is_another_one_and_the_others_stay_the_same(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("a") | wanted("b"), complete=True)
        before = {each.name: each.stat().st_ino for each in path.iterdir()}
        held = (path / "a.kubeconfig").open()
        folder.become(wanted("a", "next") | wanted("b"), complete=True)
    after = {each.name: each.stat().st_ino for each in path.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"a.kubeconfig"}
    with held:
        assert held.read() == "k"
    assert files(path)["a.kubeconfig"] == "next"


def test_what_is_not_wanted_any_more_goes(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("a") | wanted("b"), complete=True)
        folder.become(wanted("b"), complete=True)
    assert list(files(path)) == index(path) == ["b.kubeconfig"]


def test_as_long_as_the_view_is_not_complete_everything_stays(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("a"), complete=True)
    with Folder(path) as folder:
        folder.become(wanted("b"), complete=False)
        assert sorted(files(path)) == ["a.kubeconfig", "b.kubeconfig"]
        folder.become(wanted("b"), complete=True)
    assert list(files(path)) == ["b.kubeconfig"]


def test_a_cluster_without_a_kubeconfig_has_no_file_yet(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("a", None), complete=True)
        assert files(path) == {}
        assert index(path) == []
        folder.become(wanted("a"), complete=True)
    assert index(path) == ["a.kubeconfig"]


def test_another_cluster_of_the_same_name_does_not_inherit_the_file(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("a"), complete=True)
        folder.become(wanted("a", None, uid="later"), complete=True)
        assert files(path) == {}
        folder.become(wanted("a", "later", uid="later"), complete=True)
    assert files(path) == {"a.kubeconfig": "later"}


def test_a_file_of_somebody_elses_is_neither_replaced_nor_removed(path: Path):
    path.mkdir()
    (path / "a.kubeconfig").write_text("mine")
    (path / "notes.txt").write_text("mine")
    with Folder(path) as folder:
        folder.become(wanted("a"), complete=True)
        assert "somebody else's" in folder.left_out["a"]
        folder.become({}, complete=True)
    assert (path / "a.kubeconfig").read_text() == "mine"
    assert (path / "notes.txt").exists()


def test_a_link_that_somebody_put_there_is_not_followed(path: Path, tmp_path: Path):
    path.mkdir()
    (path / "a.kubeconfig").symlink_to(tmp_path / "elsewhere")
    with Folder(path) as folder:
        folder.become(wanted("a"), complete=True)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["..", "../a", "a/b", "", ".a", "a\n", "A", "a" * 300, "a..b", "a\0b"])
def test_a_name_that_could_lead_elsewhere_gets_no_file(path: Path, name: str):
    with Folder(path) as folder:
        folder.become(wanted(name) | wanted("a"), complete=True)
        assert folder.left_out == {name: "its name is no name for a file"}
    assert sorted(each.name for each in path.iterdir()) == [".milo-discovery.json", "a.kubeconfig", "index.json"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_a_killed_process_has_left_is_known_and_removed(path: Path):
    with Folder(path) as folder:
        folder.become(wanted("a") | wanted("b"), complete=True)
    (path / ".milo-discovery-x1.new").write_text("half a f")
    (path / "index.json").unlink()
    with Folder(path) as folder:
        folder.become(wanted("b"), complete=True)
    assert sorted(each.name for each in path.iterdir()) == [".milo-discovery.json", "b.kubeconfig", "index.json"]


def test_two_do_not_keep_the_same_directory(path: Path):
    with Folder(path), pytest.raises(Failed, match="another milo-discovery sync"):
        Folder(path).__enter__()
    with Folder(path):
        pass


def test_without_knowing_whose_files_these_are_nothing_is_done(path: Path):
    path.mkdir()
    (path / ".milo-discovery.json").write_text("{")
    with pytest.raises(Failed, match="nobody knows whose files"):
        Folder(path).__enter__()
