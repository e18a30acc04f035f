"""From settings to what the server listens on."""

import grp
import pwd
from collections.abc import Iterator

from milo_discoveryd.config import Listener as Wanted
from milo_discoveryd.config import Settings, UnixAddress
from milo_discoveryd.errors import StartError
from milo_discoveryd.server import listener
from milo_discoveryd.server.certificates import ServerTls


def listeners(settings: Settings) -> Iterator[listener.Listener]:
    """Raises StartError for users and groups that there aren't."""
    for each in settings.listen:
        tls = each.tls
        yield listener.Listener(
            name=each.title,
            address=_address(each, settings),
            tls=ServerTls(certificate=tls.certificate, key=tls.key, client_ca=tls.client_ca) if tls else None,
            peer_credentials=each.peer_credentials,
            tokens=each.tokens,
            connections=each.connections,
        )


def _address(wanted: Wanted, settings: Settings) -> listener.UnixAddress | listener.TcpAddress:
    address = wanted.address
    if not isinstance(address, UnixAddress):
        return listener.TcpAddress(address.host, address.port)
    mode = settings.socket.mode if wanted.mode is None else wanted.mode
    group = settings.socket.group if wanted.group is None else wanted.group
    return listener.UnixAddress(address.path, mode, _group(group), _owner(wanted.owner))


def _group(name: str | None) -> int | None:
    if name is None or name.isdigit():
        return None if name is None else int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise StartError(f"socket.group: there is no group {name!r} on this machine; give its number") from None


def _owner(name: str | None) -> int | None:
    if name is None or name.isdigit():
        return None if name is None else int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise StartError(f"owner: there is no user {name!r} on this machine; give its number") from None
