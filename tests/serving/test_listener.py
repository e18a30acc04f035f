"""Sockets that are ours alone, and said to be lost when they are not."""

import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from milo_discoveryd.errors import StartError
from milo_discoveryd.server.listener import TcpAddress, TcpListener, UnixAddress, UnixListener


@pytest.fixture
async def server() -> AsyncIterator[grpc.aio.Server]:
    made = grpc.aio.server()
    yield made
    await made.stop(None)


Bind = Callable[..., UnixListener]


@pytest.fixture
def bound() -> Iterator[Bind]:
    """Binds a server to a path; what it locked is given back in the end."""
    made: list[UnixListener] = []

    def bind(server: grpc.aio.Server, path: Path, **address: int) -> UnixListener:
        made.append(UnixListener(UnixAddress(path, **address)))
        made[-1].bind(server)
        return made[-1]

    yield bind
    for listener in made:
        listener.close()


async def test_the_socket_has_the_mode_that_was_asked_for(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    bound(server, tmp_path / "d.sock", mode=0o600)
    assert stat.S_IMODE((tmp_path / "d.sock").stat().st_mode) == 0o600


async def test_the_socket_goes_to_the_group_that_was_asked_for(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    bound(server, tmp_path / "d.sock", group=os.getgid())
    assert (tmp_path / "d.sock").stat().st_gid == os.getgid()


async def test_its_folder_is_made_for_the_owner_and_the_group(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    umask = os.umask(0o077)  # as the command sets it
    try:
        bound(server, tmp_path / "run" / "d.sock", group=os.getgid())
    finally:
        os.umask(umask)
    folder = (tmp_path / "run").stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_gid) == (0o750, os.getgid())


async def test_a_socket_that_another_daemon_serves_is_refused_and_left_alone(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    first = bound(server, tmp_path / "d.sock")
    with pytest.raises(StartError, match=rf"in use by another daemon \(process {os.getpid()}\)"):
        UnixListener(UnixAddress(tmp_path / "d.sock")).bind(grpc.aio.server())
    assert first.lost() is None


async def test_a_socket_left_by_a_daemon_that_died_is_taken_over(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    dead = bound(grpc.aio.server(), tmp_path / "d.sock")
    dead.close()
    assert bound(server, tmp_path / "d.sock").lost() is None


@pytest.mark.parametrize("kind", ["file", "link"])
async def test_what_is_not_a_socket_is_not_touched(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path, kind: str
) -> None:
    path, other = tmp_path / "d.sock", tmp_path / "other"
    other.write_text("precious")
    if kind == "link":
        path.symlink_to(other)
    else:
        path.write_text("precious")
    with pytest.raises(StartError, match="remove it, or listen elsewhere"):
        bound(server, path)
    assert path.read_text() == "precious"


async def test_a_link_in_the_place_of_the_lock_is_refused(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    (tmp_path / "d.sock.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="lock file"):
        bound(server, tmp_path / "d.sock")
    assert not (tmp_path / "elsewhere").exists()


async def test_a_folder_that_anybody_can_write_is_refused(bound: Bind, server: grpc.aio.Server, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StartError, match="chmod o-w"):
        bound(server, folder / "d.sock")


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_path_that_is_no_longer_ours_is_noticed(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "d.sock"
    mine = bound(server, path)
    kept = path.rename(tmp_path / "kept")  # kept, so that the new file can't be given the same inode
    if replaced:
        path.write_text("")
    assert str(mine.lost()).endswith("was replaced by another file" if replaced else "was removed")
    path.unlink(missing_ok=True)
    kept.rename(path)


async def test_a_tcp_port_in_use_is_refused(server: grpc.aio.Server) -> None:
    address = TcpListener(TcpAddress("127.0.0.1", 0)).bind(server)
    port = int(address.rpartition(":")[2])
    await server.start()
    with pytest.raises(StartError, match="is the port in use"):
        TcpListener(TcpAddress("127.0.0.1", port)).bind(grpc.aio.server(options=(("grpc.so_reuseport", 0),)))


async def test_what_another_daemon_has_put_in_its_place_is_left_alone_at_the_end(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    path = tmp_path / "d.sock"
    mine = bound(server, path)
    await server.start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as another:
        another.bind(str(path))
        await server.stop(None)
        mine.close()
        assert path.is_socket()


async def test_nothing_is_left_of_it_at_the_end_but_the_lock_file(
    bound: Bind, server: grpc.aio.Server, tmp_path: Path
) -> None:
    mine = bound(server, tmp_path / "d.sock")
    await server.start()
    await server.stop(None)
    mine.close()
    assert [path.name for path in tmp_path.iterdir()] == ["d.sock.lock"]
