"""Diagnoses failed connections to a TCP address of the daemon: gRPC reports most causes as a closed socket."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Literal

from milo_discovery.errors import InvalidCredentials

if TYPE_CHECKING:
    from milo_discovery.client_credentials import ClientCredentials

_LIMIT_S = 2.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
_SETTINGS_FRAME = 4
_HTTP1_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

# OpenSSL's X509_V_ERR_ codes.
_CERTIFICATE_PROBLEMS = {
    **dict.fromkeys((2, 7, 18, 19, 20, 21), "is not signed by CA {ca_file}"),
    9: "is not valid yet: check the clocks of both machines",
    10: "has expired: renew it",
    26: "is not for servers: issue one with the extended key usage serverAuth",
    62: "is not for {host}: connect to a name in the certificate, or issue one for {host}",
    64: "is not for {host}: connect to an address in the certificate, or issue one for {host}",
}

_CLIENT_CERTIFICATE_PROBLEMS = {
    **_CERTIFICATE_PROBLEMS,
    26: "is not for clients: issue one with the extended key usage clientAuth",
}

_HTTP_INSTEAD = "this port speaks HTTP, not gRPC: connect to an address of --listen, not of --http-listen"

Protocol = Literal["gRPC", "HTTP", "TLS"]


def connection_problem(target: str, credentials: ClientCredentials) -> str | None:
    """Connect to HOST:PORT, and return what is wrong with its name, TLS or protocol; None if no problem is found."""
    try:
        if credentials.ca_file is None:
            return _plain_problem(target)
        return _handshake_problem(target, credentials)
    except socket.gaierror as error:
        return f"cannot resolve the host {target.rpartition(':')[0]}: {error.strerror}"
    except OSError:
        return None  # The error message of gRPC states the reason.
    except InvalidCredentials as error:
        return str(error)


def _connect(target: str) -> socket.socket:
    host, _, port = target.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_LIMIT_S)


def _plain_problem(target: str) -> str | None:
    match _protocol(target):
        case "gRPC":
            return None
        case "HTTP":
            return _HTTP_INSTEAD
        case "TLS":
            return "this listener uses TLS: set --ca-file"
        case None:
            return "no gRPC server listens on this port"


def _handshake_problem(target: str, credentials: ClientCredentials) -> str | None:
    context = credentials.tls_context()
    context.set_alpn_protocols(["h2"])
    host = target.rpartition(":")[0].strip("[]")
    try:
        with _connect(target) as plain, context.wrap_socket(plain, server_hostname=host) as secured:
            if secured.selected_alpn_protocol() != "h2":
                return "this port speaks HTTPS, not gRPC"
            # In TLS 1.3, a server refuses the client's certificate after the client's handshake has ended, by an alert
            # or by closing the connection.
            secured.sendall(HTTP2_PREFACE)
            return None if secured.recv(1) else _refused_certificate(credentials)
    except ssl.SSLCertVerificationError as error:
        if (reason := _CERTIFICATE_PROBLEMS.get(error.verify_code)) is None:
            return f"the daemon's certificate is not valid: {error.verify_message}"
        return f"the daemon's certificate {reason.format(host=host, ca_file=credentials.ca_file)}"
    except (ConnectionResetError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or ""
        is_alert = not isinstance(error, ssl.SSLError) or "ALERT" in reason
        return _refused_certificate(credentials, reason) if is_alert else _protocol_problem(target)


def _protocol_problem(target: str) -> str:
    """Return why the TLS handshake with a server failed."""
    match _protocol(target):
        case "HTTP":
            return _HTTP_INSTEAD
        case "gRPC":
            return "this listener does not use TLS: leave out --ca-file"
        case _:
            return "the TLS handshake failed: check that a gRPC server with TLS listens on this port"


def _refused_certificate(credentials: ClientCredentials, alert: str = "") -> str:
    file = credentials.certificate_file
    if file is None:
        return "the listener requires a client certificate: set --certificate-file and --key-file"
    if problem := _CLIENT_CERTIFICATE_PROBLEMS.get(_verify_code(credentials)):
        return f"the client certificate {file} {problem}"
    if "CERTIFICATE_EXPIRED" in alert:
        return (
            f"the listener reports an expired certificate, but the client certificate {file} has not expired: "
            "renew the listener's `client_ca`, or check the clocks of both machines"
        )
    return (
        f"the listener does not accept the client certificate {file}: "
        "use one that is signed by the listener's `client_ca`"
    )


def _verify_code(credentials: ClientCredentials) -> int:
    """Return OpenSSL's error code for the client certificate, whatever its CA is; 0 if it is valid.

    Python verifies certificates only in handshakes, so this function does one in memory.
    """
    client, listener = credentials.tls_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    listener.verify_mode = ssl.CERT_REQUIRED
    listener.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    assert credentials.certificate_file is not None, "there is no client certificate"
    listener.load_verify_locations(credentials.certificate_file)
    listener.load_cert_chain(credentials.certificate_file, credentials.key_file)
    to_listener, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(to_client, to_listener), listener.wrap_bio(to_listener, to_client, server_side=True)
    for end in ends * 2:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_code
    return 0


def _protocol(target: str) -> Protocol | None:
    """Return the protocol of the server at HOST:PORT, detected by sending the first bytes of each protocol, or None."""
    answer = _answer(target, HTTP2_PREFACE)
    if answer[3:4] == bytes([_SETTINGS_FRAME]):
        return "gRPC"
    if answer.startswith(b"HTTP/") or _answer(target, _HTTP1_REQUEST).startswith(b"HTTP/"):
        return "HTTP"
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        with _connect(target) as plain, unverified.wrap_socket(plain):
            return "TLS"
    except ssl.SSLError as error:
        return "TLS" if "ALERT" in (error.reason or "") else None
    except OSError:
        return None


def _answer(target: str, request: bytes) -> bytes:
    with _connect(target) as connection:
        try:
            connection.sendall(request)
            return connection.recv(64)
        except OSError:
            return b""
