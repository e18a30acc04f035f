"""Kubeconfig files on disk: links, permissions, other file types, and changes during a read."""

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from milo_discoveryd.check.files import kubeconfig_files
from milo_discoveryd.credentials.kubeconfig_files import (
    MAX_BYTES,
    FilesError,
    KubeconfigFiles,
    UnsettledFileError,
)
from milo_discoveryd.sources.kind import FileObject
from milo_kube.file_content import SETTLED_S
from tests.support.logs import capture_logs
from tests.unit.sources.test_kubeconfig_files import content, files_of


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "clusters"
    made.mkdir()
    return made


def of_directory(directory: Path, wall: float = 4e9) -> KubeconfigFiles:
    return KubeconfigFiles(files_of("kubeconfig-directory", path=str(directory)), wall=lambda: wall)


def of_kind(file: Path) -> KubeconfigFiles:
    return KubeconfigFiles(files_of("kind", path=str(file)), wall=lambda: 4e9)


def problems(files: KubeconfigFiles) -> dict[str, str]:
    return {obj.key: obj.problem for obj in files.scan().objects}


def test_hidden_and_temporary_files_and_subdirectories_are_skipped(directory: Path) -> None:
    for name in ("alpha", ".hidden", "beta~", "beta.tmp", "beta.swp", "config.lock", "beta.part"):
        (directory / name).write_bytes(content("any"))
    (directory / "subdirectory").mkdir()
    Path(os.fsdecode(os.fsencode(directory) + b"/not-utf-8-\xff")).write_bytes(content("any"))
    assert problems(of_directory(directory)) == {"alpha": ""}


def test_symlink_within_directory_is_followed(directory: Path) -> None:
    (directory / "..1").mkdir()
    (directory / "..1" / "alpha").write_bytes(content("any"))
    (directory / "..data").symlink_to("..1")
    (directory / "alpha").symlink_to("..data/alpha")
    assert problems(of_directory(directory)) == {"alpha": ""}


def test_symlink_outside_directory_is_rejected(directory: Path) -> None:
    (directory.parent / "own.kubeconfig").write_bytes(content("any"))
    (directory / "alpha").symlink_to("../own.kubeconfig")
    files = of_directory(directory)
    assert "outside of the directory" in problems(files)["alpha"]
    with pytest.raises(FilesError, match="outside of the directory"):
        files.kubeconfig("alpha")


def test_dangling_symlink_is_unreadable_and_not_deleted(directory: Path) -> None:
    (directory / "alpha").symlink_to("nothing")
    files = of_directory(directory)
    assert "cannot be read" in problems(files)["alpha"]
    assert files.find("alpha") == FileObject("alpha", problem=problems(files)["alpha"])


def test_named_pipe_and_socket_are_rejected_without_blocking(directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
        found = problems(of_directory(directory))
    assert found["pipe"] == "pipe is not a regular file"
    assert found["socket"].startswith("socket cannot be read")


@pytest.mark.parametrize(("mode", "is_exposed"), [(0o700, False), (0o775, False), (0o777, True), (0o1777, True)])
def test_world_writable_directory_is_reported(directory: Path, mode: int, is_exposed: bool) -> None:
    directory.chmod(mode)
    files = of_directory(directory)
    assert (files.exposure() is not None) == is_exposed
    levels = [finding.level for finding in kubeconfig_files("files", files)]
    assert ("warn" in levels) == is_exposed


def test_world_writable_file_is_rejected(directory: Path) -> None:
    (directory / "alpha").write_bytes(content("any"))
    (directory / "alpha").chmod(0o666)
    assert "chmod o-w" in problems(of_directory(directory))["alpha"]


def test_file_over_the_size_limit_is_rejected(directory: Path) -> None:
    (directory / "alpha").write_bytes(content("any") + b"#" * MAX_BYTES)
    assert problems(of_directory(directory))["alpha"] == f"alpha is larger than {MAX_BYTES >> 10} KiB"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_file_without_read_permission_is_rejected(directory: Path) -> None:
    (directory / "alpha").write_bytes(content("any"))
    (directory / "alpha").chmod(0)
    assert "Permission denied" in problems(of_directory(directory))["alpha"]


def test_missing_directory_raises_instead_of_reporting_deleted_files(directory: Path) -> None:
    (directory / "alpha").write_bytes(content("any"))
    files = of_directory(directory)
    directory.rename(directory.parent / "moved")
    for attempt in (files.scan, lambda: files.find("alpha")):
        with pytest.raises(FilesError) as raised:
            attempt()
        assert raised.value.reason == "FileNotFound"


def test_deleted_file_is_not_found(directory: Path) -> None:
    (directory / "alpha").write_bytes(content("any"))
    files = of_directory(directory)
    assert files.find("alpha") is not None
    (directory / "alpha").unlink()
    assert files.find("alpha") is None
    assert files.scan().objects == ()


def test_missing_context_is_not_found_and_missing_kubeconfig_raises(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_bytes(content("kind-alpha"))
    files = of_kind(file)
    assert files.find("kind-alpha") is not None
    file.write_bytes(content("other"))
    assert files.find("kind-alpha") is None
    file.unlink()
    with pytest.raises(FilesError):
        files.find("kind-alpha")


def test_scan_reports_files_with_changed_content(directory: Path) -> None:
    for name in ("alpha", "beta"):
        (directory / name).write_bytes(content("any"))
    files = of_directory(directory)
    reported: list[frozenset[str]] = []
    files.subscribe(reported.append)
    assert files.scan().changed == {"alpha", "beta"}
    assert files.scan().changed == frozenset()
    (directory / "alpha").write_bytes(content("any", user={"token": "renewed"}))
    (directory / "beta").touch()
    changed = files.scan().changed
    assert changed == {"alpha"}
    files.announce(changed)
    files.announce(frozenset())
    assert reported == [{"alpha"}]


WHOLE = content("any", server="https://127.0.0.1:12345")
OTHER_PORT = WHOLE.replace(b"12345", b"123")
"""A kubeconfig whose address was truncated and is still valid."""


class Live:
    """Files of a source, read with a clock that the test can advance."""

    def __init__(self, kind: str, path: Path) -> None:
        self.passed_s = 0.0
        self.files = KubeconfigFiles(files_of(kind, path=str(path)), wall=lambda: time.time() + self.passed_s)

    def clusters(self, *renamed: str) -> dict[str, str]:
        """Scan the files, of which `renamed` were just renamed, and return the address of each usable cluster."""
        found = self.files.scan(renamed.__contains__).objects
        targets = [obj.contributions[0].content.target for obj in found if obj.contributions]  # type: ignore[union-attr]
        return {target.name: target.endpoint for target in targets}

    def settle(self) -> None:
        self.passed_s += SETTLED_S


def with_port(port: int) -> dict[str, str]:
    return {"alpha": f"https://127.0.0.1:{port}"}


def with_a_known_file(directory: Path) -> tuple[Path, Live]:
    file, live = directory / "alpha", Live("kubeconfig-directory", directory)
    file.write_bytes(WHOLE)
    live.settle()
    assert live.clusters() == with_port(12345)
    live.passed_s = 0
    return file, live


def test_half_written_file_keeps_its_cluster_until_it_is_settled(directory: Path) -> None:
    file, live = with_a_known_file(directory)
    for half in (b"", WHOLE[: len(WHOLE) // 2], OTHER_PORT):
        file.write_bytes(half)
        assert live.clusters() == with_port(12345)
        with pytest.raises(UnsettledFileError):
            live.files.find("alpha")
    file.write_bytes(WHOLE)
    assert live.clusters() == with_port(12345)
    assert live.files.find("alpha") is not None
    file.write_bytes(OTHER_PORT)
    live.settle()
    assert live.clusters() == with_port(123)


def test_half_written_new_file_is_unusable_until_it_is_settled(directory: Path) -> None:
    file, live = directory / "alpha", Live("kubeconfig-directory", directory)
    file.write_bytes(OTHER_PORT)
    (found,) = live.files.scan().objects
    assert "may be incomplete: write another file and rename it" in found.problem
    file.write_bytes(WHOLE)
    assert 0 < live.files.scan().settles_in_s <= SETTLED_S
    live.settle()
    assert live.files.scan().settles_in_s == 0
    assert live.clusters() == with_port(12345)


def test_file_that_was_deleted_and_is_half_written_again_keeps_its_cluster(directory: Path) -> None:
    file, live = with_a_known_file(directory)
    file.rename(directory / "alpha~")  # kept, so that the new file has another inode
    file.write_bytes(OTHER_PORT)
    assert live.clusters() == with_port(12345)


def test_contexts_that_a_half_written_kind_file_lacks_are_not_deleted(tmp_path: Path) -> None:
    file, live = tmp_path / "config", Live("kind", tmp_path / "config")
    whole = content("kind-alpha", server="https://127.0.0.1:12345")
    file.write_bytes(whole)
    with pytest.raises(UnsettledFileError):
        live.files.scan()
    live.settle()
    assert live.clusters() == with_port(12345)
    live.passed_s = 0
    file.write_bytes(whole[: whole.index(b"contexts:")])
    assert live.clusters() == with_port(12345)
    with pytest.raises(UnsettledFileError):
        live.files.find("kind-alpha")
    live.settle()
    assert live.clusters() == {}
    assert live.files.find("kind-alpha") is None


@pytest.mark.parametrize(("kind", "key"), [("kubeconfig-directory", "alpha"), ("kind", "kind-alpha")])
def test_credential_of_a_half_written_file_is_not_issued(directory: Path, kind: str, key: str) -> None:
    file = directory / "alpha"
    live = Live(kind, directory if kind == "kubeconfig-directory" else file)
    file.write_bytes(content("kind-alpha", user={"token": "CANARY"}))
    live.settle()
    live.files.scan()
    assert b"CANARY" in live.files.kubeconfig(key).content
    live.passed_s = 0
    file.write_bytes(content("kind-alpha", user={"token": "CAN"}))
    with pytest.raises(FilesError, match="may be incomplete"):
        live.files.kubeconfig(key)
    assert live.files.scan().changed == frozenset()
    live.settle()
    assert live.files.scan().changed == {key}
    assert b"CANARY" not in live.files.kubeconfig(key).content


def test_renamed_file_is_used_at_once(directory: Path) -> None:
    live = Live("kubeconfig-directory", directory)
    for port, body in ((12345, WHOLE), (123, OTHER_PORT)):
        (directory / ".new").write_bytes(body)
        (directory / ".new").rename(directory / "alpha")
        assert live.clusters("alpha") == with_port(port)
        assert live.clusters() == with_port(port)
        assert live.files.kubeconfig("alpha").content == body


def test_file_in_a_mounted_volume_is_used_at_once(directory: Path) -> None:
    live = Live("kubeconfig-directory", directory)
    (directory / "alpha").symlink_to("..data/alpha")
    for port, body in ((12345, WHOLE), (123, OTHER_PORT)):
        (directory / f"..{port}").mkdir()
        (directory / f"..{port}" / "alpha").write_bytes(body)
        (directory / "..data_tmp").symlink_to(f"..{port}")
        (directory / "..data_tmp").rename(directory / "..data")
        assert live.clusters() == with_port(port)


def test_file_that_changes_while_it_is_read_is_not_settled(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = directory / "alpha"
    file.write_bytes(WHOLE)
    os.utime(file, (0, 0))
    original = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = original(descriptor)
        file.write_bytes(OTHER_PORT)
        return status

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        assert Live("kubeconfig-directory", directory).clusters() == {}


def test_file_written_again_with_the_same_content_stays_usable(directory: Path) -> None:
    live = Live("kubeconfig-directory", directory)
    (directory / "alpha").write_bytes(WHOLE)
    live.settle()
    live.files.scan()
    live.passed_s = 0
    (directory / "alpha").write_bytes(WHOLE)
    assert live.files.scan().settles_in_s == 0
    assert live.files.kubeconfig("alpha").content == WHOLE


def test_file_with_a_modification_time_in_the_future_is_settled(directory: Path) -> None:
    (directory / "alpha").write_bytes(WHOLE)
    live = Live("kubeconfig-directory", directory)
    live.passed_s = -3600
    assert live.clusters() == with_port(12345)


def test_check_reads_a_kubeconfig_file_that_is_not_settled(directory: Path) -> None:
    (directory / "alpha").write_bytes(WHOLE)
    (found,) = Live("kubeconfig-directory", directory).files.objects_now()
    assert not found.problem


def test_symlink_that_leads_to_itself_affects_no_other_file(directory: Path) -> None:
    (directory / "alpha").write_bytes(content("any"))
    (directory / "loop").symlink_to("loop")
    alpha, loop = of_directory(directory).scan().objects
    assert (alpha.key, alpha.problem) == ("alpha", "")
    assert "symbolic links" in loop.problem


def test_symlink_loop_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    files = of_kind(tmp_path / "one")
    assert files.directories == (tmp_path,)
    with pytest.raises(FilesError, match="symbolic links"):
        files.scan()
    with pytest.raises(FilesError, match="symbolic links"):
        of_directory(tmp_path / "one").scan()


def test_unchanged_unusable_kubeconfig_is_parsed_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "alpha").write_bytes(b"a: [")
    files = of_directory(directory)
    first = files.scan()
    monkeypatch.setattr(
        "milo_discoveryd.sources.kubeconfig_files.parsed_kubeconfig", lambda *_: pytest.fail("parsed again")
    )
    assert files.scan().objects == first.objects


def test_directories_of_a_symlink_and_of_its_target_are_watched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "config").write_bytes(content("kind-alpha"))
    (tmp_path / "config").symlink_to("real/config")
    assert of_kind(tmp_path / "config").directories == (tmp_path, tmp_path / "real")


NAMES = st.sampled_from(["alpha", "beta", "gamma"])
ACTIONS = st.lists(st.tuples(st.sampled_from(["write", "replace", "cut", "delete", "scan"]), NAMES), max_size=12)


@settings(deadline=None)
@given(ACTIONS)
def test_scan_matches_the_directory_after_any_changes(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str]]
) -> None:
    directory = tmp_path_factory.mktemp("clusters")
    files = of_directory(directory)
    for number, (action, name) in enumerate(actions):
        file, body = directory / name, content("any", server=f"https://127.0.0.1:{1000 + number}")
        match action:
            case "write":
                file.write_bytes(body)
            case "replace":
                (directory / ".new").write_bytes(body)
                (directory / ".new").rename(file)
            case "cut":
                file.write_bytes(body[: len(body) // 2])
            case "delete":
                file.unlink(missing_ok=True)
            case _:
                files.scan()
    assert set(files.scan().objects) == set(of_directory(directory).scan().objects)


def test_file_for_which_the_kind_raises_an_unexpected_error_does_not_affect_others(directory: Path) -> None:
    of = files_of("kubeconfig-directory", path=str(directory))
    read = of.read_file

    def read_file(name: str, found: bytes) -> Iterable[FileObject]:
        if name == "broken":
            raise ZeroDivisionError
        return read(name, found)

    for name in ("alpha", "broken"):
        (directory / name).write_bytes(content("any"))
    with capture_logs() as logs:
        found = problems(KubeconfigFiles(replace(of, read_file=read_file), wall=lambda: 4e9))
    assert found.pop("alpha") == ""
    assert "internal error (ZeroDivisionError)" in found["broken"]
    assert [(entry["event"], entry["file"]) for entry in logs] == [("kubeconfig not read", "broken")]


@pytest.mark.parametrize(("user", "is_refused"), [(0, True), (1000, False)])
def test_directory_of_another_user_is_refused_for_root_and_reported_otherwise(
    directory: Path, monkeypatch: pytest.MonkeyPatch, user: int, is_refused: bool
) -> None:
    (directory / "alpha").write_bytes(content("any"))
    files = of_directory(directory)
    owner = os.stat_result((0o40755, 0, 0, 1, 4242, 4242, 0, 0, 0, 0))
    stat_of = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: owner if path == directory else stat_of(path, **how))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert files.exposure() == (
        f"{directory} belongs to user 4242, who can replace the kubeconfigs in it: run chown {user} on it"
    )
    if is_refused:
        for use in (files.scan, lambda: files.kubeconfig("alpha")):
            with pytest.raises(FilesError, match="belongs to user 4242") as refused:
                use()
            assert refused.value.reason == "DirectoryNotOwned"
    else:
        assert problems(files) == {"alpha": ""}


@pytest.mark.parametrize("owner", [0, 1000])
def test_directory_of_root_or_of_the_daemons_user_is_not_reported(
    directory: Path, monkeypatch: pytest.MonkeyPatch, owner: int
) -> None:
    status = os.stat_result((0o40755, 0, 0, 1, owner, owner, 0, 0, 0, 0))
    stat_of = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: status if path == directory else stat_of(path, **how))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert of_directory(directory).exposure() is None


def test_scan_of_files_beyond_the_memory_budget_fails_and_its_changes_are_reported_later(directory: Path) -> None:
    files = KubeconfigFiles(files_of("kubeconfig-directory", path=str(directory)), limit=40_000, wall=lambda: 4e9)
    names = [f"cluster-{number:02}" for number in range(50)]
    for name in names:
        (directory / name).write_bytes(content("any"))
    for _ in range(2):
        with pytest.raises(FilesError, match=r"watch\.objects_limit"):
            files.scan()
    for name in names[10:]:
        (directory / name).unlink()
    scan = files.scan()
    assert {file_object.key for file_object in scan.objects} == {*names[:10]} <= scan.changed


def test_contexts_of_one_file_beyond_the_memory_budget_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_bytes(content("kind-alpha"))
    files = KubeconfigFiles(files_of("kind", path=str(file)), limit=100, wall=lambda: 4e9)
    with pytest.raises(FilesError, match=r"watch\.objects_limit"):
        files.scan()
    with pytest.raises(FilesError, match=r"watch\.objects_limit"):
        files.find("kind-alpha")
