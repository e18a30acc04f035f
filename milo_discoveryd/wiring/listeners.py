"""Builds listeners and the token reviewer from settings."""

import grp
import pwd
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from milo_discoveryd import process_hardening
from milo_discoveryd.config import ListenerSettings, Settings, UnixAddress
from milo_discoveryd.config.listeners import Tls
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.logger import log
from milo_discoveryd.server.connections import listener
from milo_discoveryd.server.connections.connection_budget import fit_connections
from milo_discoveryd.wiring.upstreams import open_upstream

if TYPE_CHECKING:
    from milo_discoveryd.identity.token_review import TokenReviewer
    from milo_discoveryd.server.connections.tls_certificates import ServerTls

# What few listeners need is imported for these.
# ruff: noqa: PLC0415


def listeners(settings: Settings) -> list[listener.Listener]:
    """Build the listeners. Raises StartError for users and groups that do not exist."""
    wanted = list(_wanted(settings))
    found = fit_connections(wanted, process_hardening.descriptor_limit())
    for socket, asked, configured in zip(found, wanted, settings.listen, strict=True):
        if socket.connections < asked.connections:
            # The default exceeds the usual limit of a shell, so only a configured number is worth a warning.
            note = log.info if configured.connections is None else log.warning
            note(
                "connection limit lowered: raise the limit of open files (RLIMIT_NOFILE)",
                listener=socket.name,
                connections=socket.connections,
                set=asked.connections,
                limit=process_hardening.descriptor_limit(),
            )
    return found


def _wanted(settings: Settings) -> Iterator[listener.Listener]:
    shared = listener.CONNECTIONS // max(1, sum(listener.connections is None for listener in settings.listen))
    for configured in settings.listen:
        yield listener.Listener(
            name=configured.title,
            address=_address(configured, settings),
            tls=None if configured.tls is None else _tls(configured.tls),
            peer_credentials=configured.peer_credentials,
            tokens=configured.tokens,
            connections=max(1, shared) if configured.connections is None else configured.connections,
        )


def _tls(configured: Tls) -> "ServerTls":
    from milo_discoveryd.server.connections.tls_certificates import ServerTls

    return ServerTls(certificate=configured.certificate, key=configured.key, client_ca=configured.client_ca)


def _address(wanted: ListenerSettings, settings: Settings) -> listener.UnixSocket | listener.TcpEndpoint:
    address = wanted.address
    if not isinstance(address, UnixAddress):
        return listener.TcpEndpoint(address.host, address.port)
    mode = settings.socket.mode if wanted.mode is None else wanted.mode
    where, group = ("socket.group", settings.socket.group) if wanted.group is None else (wanted.title, wanted.group)
    gid = _number(group, where, "group", lambda name: grp.getgrnam(name).gr_gid)
    uid = _number(wanted.owner, wanted.title, "user", lambda name: pwd.getpwnam(name).pw_uid)
    return listener.UnixSocket(address.path, mode, gid, uid)


def _number(name: str | None, where: str, kind: str, look_up: Callable[[str], int]) -> int | None:
    if name is None or name.isdigit():
        return None if name is None else int(name)
    try:
        return look_up(name)
    except KeyError:
        raise StartError(f"{where}: there is no {kind} {name!r} on this machine; give its number") from None


def token_reviewer(settings: Settings, environ: Mapping[str, str], closing: AsyncExitStack) -> "TokenReviewer | None":
    """Build the token reviewer; None if no listener accepts tokens. `closing` closes its connections."""
    if not any(configured.tokens for configured in settings.listen):
        return None
    from milo_discoveryd.identity.token_review import TokenReviewer

    wanted = settings.token_review
    transport, origin = open_upstream(wanted.kubeconfig, settings, environ, closing)
    return TokenReviewer(transport, origin=origin, audiences=wanted.audiences)
