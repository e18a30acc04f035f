"""Checks the addresses that the daemon will listen on, without changing anything."""

import errno
import fcntl
import grp
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import TcpAddress, UnixAddress
from milo_discoveryd.config.listeners import Tls
from milo_discoveryd.server.connections.socket_file import directory_problem
from milo_discoveryd.server.connections.tcp_sockets import bound
from milo_discoveryd.server.connections.tls_certificates import ServerTls, UnfitFileError
from milo_kube.credential import CredentialError

_RENEW = "renew it, and check the clock of this machine; the daemon reads the files again when they change"


def unix_socket(address: UnixAddress) -> Finding:
    subject, path = f"listen {address}", address.path
    return (
        _directory(subject, path.parent)
        or _in_use(subject, path)
        or _not_a_socket(subject, path)
        or ok(subject, "free" if path.parent.is_dir() else f"free; {path.parent} will be created")
    )


def tcp_port(subject: str, address: TcpAddress, *, daemon_is_running: bool = False) -> Finding:
    """Check that a port is free. If a daemon with these settings is running, a port in use is probably its own."""
    subject = f"{subject} {address}"
    try:
        for probe in bound(address.host, address.port):
            probe.close()
    except OSError as error:
        if daemon_is_running and error.errno == errno.EADDRINUSE:
            return warn(subject, "in use", "expected if the running daemon listens there")
        return fail(
            subject, f"cannot listen: {error.strerror or error}", "choose another address, or stop the process using it"
        )
    return ok(subject, "free")


def used_twice(subject: str, address: TcpAddress, others: Iterable[TcpAddress]) -> Finding | None:
    """Return a failure if the address overlaps one of `others`, which the daemon binds earlier."""
    for other in others:
        is_included = _includes(address.host, other.host) or _includes(other.host, address.host)
        if is_included and address.port == other.port != 0:
            return fail(f"{subject} {address}", f"{other} already uses the port", "choose another port")
    return None


def _includes(host: str, other: str) -> bool:
    """Return whether a listener on `host` also listens on `other`."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return (":" in host) == (":" in other)
    return host in ("", other)


def certificate(subject: str, tls: Tls) -> Finding:
    try:
        loaded = ServerTls(certificate=tls.certificate, key=tls.key, client_ca=tls.client_ca).load()
    except (CredentialError, UnfitFileError) as error:
        fix = "correct the file; the key must match the certificate and have no passphrase"
        return fail(subject, f"tls: {error}", fix)
    if loaded.problem:
        return fail(subject, loaded.problem, _RENEW)
    if loaded.expiry.is_soon:
        return warn(subject, f"the certificate expires at {loaded.expiry}", _RENEW)
    return ok(subject, "certificate and key match")


def group(subject: str, name: str) -> Finding:
    try:
        number = int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        return fail(subject, f"this machine has no group {name!r}", "use its number, or create it")
    if os.geteuid() != 0 and number not in {os.getegid(), *os.getgroups()}:
        return fail(
            subject,
            f"the daemon is not a member of group {name}, so it cannot assign the socket to that group",
            f"add the daemon's user to it; in a pod, set securityContext.fsGroup or supplementalGroups: [{number}]",
        )
    return ok(subject, f"group {number} can connect")


def owner(subject: str, name: str) -> Finding:
    try:
        number = int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        return fail(subject, f"this machine has no user {name!r}", "use its number, or create it")
    if os.geteuid() not in (0, number):
        return fail(
            subject,
            f"the daemon runs as user {os.geteuid()}, and only root can set the socket's owner to user {number}",
            "remove the setting `owner`, or run the daemon as root",
        )
    return ok(subject, f"user {number} will own the socket")


def _directory(subject: str, directory: Path) -> Finding | None:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        return fail(subject, f"{existing} is not a directory", "remove it, or listen elsewhere")
    if not os.access(existing, os.W_OK | os.X_OK):
        return fail(
            subject,
            f"{existing} is not writable by user {os.geteuid()}",
            f"mount a volume at {directory} (in a pod: an emptyDir, with securityContext.fsGroup), or listen elsewhere",
        )
    if existing == directory and (problem := directory_problem(directory)) is not None:
        return fail(subject, *problem)
    return None


def _in_use(subject: str, path: Path) -> Finding | None:
    """Check the lock that a running daemon holds."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        return fail(
            subject, f"the lock file {lock_path} cannot be opened: {error.strerror}", "remove it, or listen elsewhere"
        )
    with os.fdopen(descriptor) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock.read(20).strip()
            return warn(
                subject,
                f"in use by a daemon{f' (process {holder})' if holder else ''}",
                "expected if that daemon runs with these settings; a second daemon must listen elsewhere",
            )
    return None


def _not_a_socket(subject: str, path: Path) -> Finding | None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISSOCK(mode):
        return None
    kind = "a symbolic link" if stat.S_ISLNK(mode) else "not a socket"
    return fail(subject, f"{path} exists and is {kind}", "remove it, or listen elsewhere")
