"""Whether the daemon could take the places it is told to listen at. Looks, and leaves everything as it was."""

import errno
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import TcpAddress, UnixAddress
from milo_discoveryd.config.listeners import Tls
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.server.connections.socket_file import folder_problem
from milo_discoveryd.server.connections.tls_certificates import ServerTls


def unix_socket(address: UnixAddress) -> Finding:
    what, path = f"listen {address}", address.path
    return (
        _folder(what, path.parent)
        or _in_use(what, path)
        or _foreign(what, path)
        or ok(what, "free" if path.parent.is_dir() else f"free; {path.parent} will be made")
    )


def tcp_port(what: str, address: TcpAddress, *, beside_a_daemon: bool = False) -> Finding:
    """Beside one that has these settings, a port is taken by it, as far as can be told."""
    what = f"{what} {address}"
    family = socket.AF_INET6 if ":" in address.host or not address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        if beside_a_daemon and error.errno == errno.EADDRINUSE:
            return warn(what, "taken", "nothing to mend if that is by the daemon that serves the socket")
        return fail(
            what, f"cannot be listened on: {error.strerror or error}", "choose another, or end what listens there"
        )
    return ok(what, "free")


def certificate(what: str, tls: Tls) -> Finding:
    try:
        ServerTls(certificate=tls.certificate, key=tls.key, client_ca=tls.client_ca).context()
    except StartError as error:
        return fail(what, str(error), "give it PEM files that fit together, the key without a passphrase")
    return ok(what, "its certificate and key fit together")


def group(what: str, name: str) -> Finding:
    try:
        number = int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        return fail(what, f"there is no group {name!r} on this machine", "give its number instead, or make it")
    if os.geteuid() != 0 and number not in {os.getegid(), *os.getgroups()}:
        return fail(
            what,
            f"we are not in group {name}, and so may not give it the socket",
            f"in a pod: securityContext.fsGroup or supplementalGroups: [{number}]",
        )
    return ok(what, f"group {number} may connect")


def _folder(what: str, folder: Path) -> Finding | None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        return fail(what, f"{existing} is not a folder", "listen elsewhere, or remove it")
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(
            what,
            f"{existing} is not writable for us (user {os.geteuid()})",
            f"mount a volume at {folder} (in a pod: an emptyDir, with securityContext.fsGroup), or listen elsewhere",
        )
    if existing == folder and (problem := folder_problem(folder)) is not None:
        return fail(what, *problem)
    return None


def _in_use(what: str, path: Path) -> Finding | None:
    """By the lock that a daemon holds for life."""
    try:
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        return fail(what, f"its lock file cannot be opened: {error.strerror}", "remove it, or listen elsewhere")
    with os.fdopen(descriptor) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read(20).strip()
            return warn(
                what,
                f"a daemon{f' (process {holder})' if holder else ''} serves there",
                "nothing to mend if that is the one you ask about; a second one has to listen elsewhere",
            )
    return None


def _foreign(what: str, path: Path) -> Finding | None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISSOCK(mode):
        return None
    kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a socket"
    return fail(what, f"{path} is there, and is {kind}", "remove it, or listen elsewhere")
