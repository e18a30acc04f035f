"""Socket files: exclusive to the daemon, and detected when replaced."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.server.connections.listener import UnixSocket
from milo_discoveryd.server.connections.socket_file import SocketFile


@pytest.fixture
async def server() -> AsyncIterator[grpc.aio.Server]:
    made = grpc.aio.server()
    yield made
    await made.stop(None)


Bind = Callable[..., SocketFile]


@pytest.fixture
def bound() -> Iterator[Bind]:
    """Bind a server to a path; locks are released at the end."""
    made: list[SocketFile] = []

    def bind(server: grpc.aio.Server, path: Path, **address: int) -> SocketFile:
        made.append(SocketFile(UnixSocket(path, **address)))
        made[-1].claim(lambda path: server.add_insecure_port(f"unix:{path}"))
        return made[-1]

    yield bind
    for file in made:
        file.close()


async def test_socket_has_configured_mode(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    bound(server, tmp_path / "d.sock", mode=0o600)
    assert stat.S_IMODE((tmp_path / "d.sock").stat().st_mode) == 0o600


async def test_socket_has_configured_group(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    bound(server, tmp_path / "d.sock", group=os.getgid())
    assert (tmp_path / "d.sock").stat().st_gid == os.getgid()


async def test_created_socket_directory_is_accessible_only_to_owner_and_group(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    umask = os.umask(0o077)  # as the daemon sets it
    try:
        bound(server, tmp_path / "run" / "d.sock", group=os.getgid())
    finally:
        os.umask(umask)
    directory = (tmp_path / "run").stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_gid) == (0o750, os.getgid())


async def test_socket_in_use_is_refused(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    first = bound(server, tmp_path / "d.sock")
    with pytest.raises(StartError, match=rf"in use by another daemon \(process {os.getpid()}\)"):
        bound(grpc.aio.server(), tmp_path / "d.sock")
    assert first.lost() is None


async def test_file_system_without_locks_is_refused(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StartError, match=r"can't lock .*d\.sock\.lock: No locks available"):
        bound(server, tmp_path / "d.sock")


async def test_stale_socket_is_replaced(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    dead = bound(grpc.aio.server(), tmp_path / "d.sock")
    dead.close()
    assert bound(server, tmp_path / "d.sock").lost() is None


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_regular_file_or_symlink_at_socket_path_is_rejected(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path, kind: str
) -> None:
    path, other = tmp_path / "d.sock", tmp_path / "other"
    other.write_text("precious")
    if kind == "link":
        path.symlink_to(other)
    else:
        path.write_text("precious")
    with pytest.raises(StartError, match="remove it, or listen"):
        bound(server, path)
    assert path.read_text() == "precious"


async def test_symlinked_lock_file_is_refused(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    (tmp_path / "d.sock.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="lock file"):
        bound(server, tmp_path / "d.sock")
    assert not (tmp_path / "elsewhere").exists()


async def test_pipe_in_place_of_the_lock_file_is_refused(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.sock.lock")
    with pytest.raises(StartError, match="is not a regular file: remove it"):
        bound(server, tmp_path / "d.sock")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077, 0o117, 0o177, 0o222, 0o777])
@pytest.mark.parametrize("directory_mode", [0o700, 0o750, 0o755, 0o711, 0o1770])
async def test_socket_mode_is_independent_of_umask(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path, umask: int, directory_mode: int
) -> None:
    tmp_path.chmod(directory_mode)
    before = os.umask(umask)
    try:
        bound(server, tmp_path / "d.sock", mode=0o660)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "d.sock").stat().st_mode) == 0o660


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o770])
async def test_socket_directory_writable_by_others_is_rejected(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path, mode: int
) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(StartError, match="could replace the socket: listen in a subdirectory"):
        bound(server, tmp_path / "d.sock")
    assert list(tmp_path.iterdir()) == []


async def test_symlinked_socket_directory_is_rejected(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StartError, match=f"is a symbolic link: listen in {tmp_path / 'real'} itself"):
        bound(server, tmp_path / "link" / "d.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a directory")
async def test_socket_directory_of_another_user_is_rejected(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(StartError, match="belongs to user 12345, which could replace the socket"):
        bound(server, tmp_path / "d.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a socket")
async def test_socket_has_configured_owner(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    bound(server, tmp_path / "d.sock", owner=12345)
    assert (tmp_path / "d.sock").stat().st_uid == 12345


async def test_changed_mode_or_link_count_of_a_socket_is_detected(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    mine = bound(server, tmp_path / "d.sock")
    (tmp_path / "d.sock").chmod(0o666)
    assert str(mine.lost()).endswith("d.sock was changed")
    (tmp_path / "d.sock").chmod(0o660)
    assert mine.lost() is None
    (tmp_path / "other").hardlink_to(tmp_path / "d.sock")
    assert mine.lost() is not None
    (tmp_path / "other").unlink()


@pytest.mark.parametrize("replaced", [False, True])
async def test_removed_or_replaced_socket_is_detected(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "d.sock"
    mine = bound(server, path)
    kept = path.rename(tmp_path / "kept")  # kept, so that the new file has another inode
    if replaced:
        path.write_text("")
    assert str(mine.lost()).endswith("was replaced by another file" if replaced else "was removed")
    path.unlink(missing_ok=True)
    kept.rename(path)


async def test_replaced_socket_is_not_removed_at_shutdown(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    mine = bound(server, path)
    await server.start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(path))
        await server.stop(None)
        mine.close()
        assert path.is_socket()


async def test_shutdown_leaves_only_lock_file(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    mine = bound(server, tmp_path / "d.sock")
    await server.start()
    await server.stop(None)
    mine.close()
    assert [path.name for path in tmp_path.iterdir()] == ["d.sock.lock"]
