"""A daemon that is killed at any line of claiming or removing its socket does not block its successor."""

import socket
import stat
from pathlib import Path

from milo_discoveryd.server.connections.listener import UnixSocket
from milo_discoveryd.server.connections.socket_file import SocketFile
from tests.support.kill_points import deaths

DYING = """
import socket, sys
from pathlib import Path
from milo_discoveryd.server.connections import socket_file
from milo_discoveryd.server.connections.listener import UnixSocket
from tests.support.kill_points import die_at_every_line

def serve():
    file = socket_file.SocketFile(UnixSocket(Path(sys.argv[1])))
    file.claim(lambda path: socket.socket(socket.AF_UNIX).bind(str(path)))
    file.close()

die_at_every_line(socket_file.__file__, serve)
"""


def test_socket_file_is_usable_after_its_process_is_killed_at_any_line(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    died = left = 0
    for died in deaths(DYING, path):  # noqa: B007 - the number of deaths is asserted below
        left += path.exists()
        with socket.socket(socket.AF_UNIX) as listening:
            next_one = SocketFile(UnixSocket(path))
            next_one.claim(lambda made, to=listening: to.bind(str(made)))
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert next_one.lost() is None
            next_one.close()
        assert not path.exists()
    assert died >= 50
    assert left >= 10, "too few kills left the socket in place"
