"""TransportError, for requests without a usable response, and the conversion of socket and TLS errors to it."""

import errno
import os
import socket
import ssl
from typing import Literal, TypeAlias

TransportCause: TypeAlias = Literal["dns", "connect", "tls", "timeout", "closed", "too_large", "credential"]


class TransportError(Exception):
    """A request failed without a usable response. `cause` is machine-readable."""

    def __init__(self, cause: TransportCause, message: str, *, is_unreached: bool = False) -> None:
        self.cause: TransportCause = cause
        self.is_unreached = is_unreached
        """Whether no TCP connection was made, so that a request with another CA or credential would have failed too."""
        super().__init__(message)

    def copy(self) -> "TransportError":
        """Return what is raised of an error that is kept: an exception keeps the frames that it passes, with their
        data, and they keep what keeps the error."""
        return TransportError(self.cause, str(self), is_unreached=self.is_unreached)


def from_connecting(error: OSError, origin: str, *, is_unreached: bool = False) -> TransportError:
    """Convert a failure to connect to the server `origin`."""
    match error:
        case socket.gaierror():
            return TransportError(
                "dns", f"the hostname of {origin} cannot be resolved: {reason(error)}", is_unreached=is_unreached
            )
        case ssl.SSLError():
            return TransportError("tls", f"TLS handshake with {origin} failed: {_tls(error)}")
        case _:
            return TransportError("connect", f"{origin} cannot be reached: {reason(error)}", is_unreached=is_unreached)


def from_proxy(error: OSError, origin: str) -> TransportError:
    return TransportError("connect", f"the proxy for {origin} cannot be reached: {reason(error)}", is_unreached=True)


def from_exchange(error: Exception | None, origin: str) -> TransportError:
    """Convert the loss of an established connection. If `error` is None, the peer closed it."""
    if isinstance(error, ssl.SSLError):
        return TransportError("tls", f"TLS connection to {origin} failed: {_tls(error)}")
    if error is None:
        return TransportError("closed", f"{origin} closed the connection")
    return TransportError("closed", f"the connection to {origin} was lost: {reason(error)}")


def reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        if error.errno and error.errno in errno.errorcode and not isinstance(error, socket.gaierror):
            return os.strerror(error.errno)  # asyncio's own text is "Connect call failed (ADDRESS)"
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__


def _tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message.rstrip('.')}{_FIXES.get(error.verify_code, '')}"
    if not error.reason:
        return str(error)
    words = error.reason.replace("_", " ").lower()
    if "wrong version number" in words or "http request" in words:
        return f"{words} (does the port speak plain HTTP?)"
    if "alert" in words and ("certificate" in words or "unknown ca" in words):
        return f"{words}: the server requires a client certificate, or rejected the one that was sent"
    return words


_UNTRUSTED = " (certificate-authority-data must hold the CA that signed it)"
_ANOTHER_NAME = " (set tls-server-name to a name in the certificate)"
# Keyed by OpenSSL's verification error code (X509_V_ERR_*).
_FIXES = {
    10: " (renew it, or correct this machine's clock)",  # CERT_HAS_EXPIRED
    18: _UNTRUSTED,  # DEPTH_ZERO_SELF_SIGNED_CERT
    19: _UNTRUSTED,  # SELF_SIGNED_CERT_IN_CHAIN
    20: _UNTRUSTED,  # UNABLE_TO_GET_ISSUER_CERT_LOCALLY
    62: _ANOTHER_NAME,  # HOSTNAME_MISMATCH
    64: _ANOTHER_NAME,  # IP_ADDRESS_MISMATCH
}
