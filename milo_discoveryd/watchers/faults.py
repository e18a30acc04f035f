"""What can go wrong between us and an API server, in our words: the one place where foreign errors are translated."""

import asyncio
import ssl

import aiohttp

from milo_discoveryd.daemon_errors import CredentialError, TransportCause, TransportError

# What aiohttp, the sockets under it and the clock over it raise, and what our credential sources do.
FOREIGN = (aiohttp.ClientError, ssl.SSLError, OSError, asyncio.TimeoutError, CredentialError)


def translate(error: Exception, host: str) -> TransportError:
    cause: TransportCause
    match error:
        case CredentialError():
            cause, message = "credential", f"no credential for {host}: {error}"
        case aiohttp.ClientConnectorDNSError():
            cause, message = "dns", f"the host of {host} cannot be found: {_reason(error)}"
        case aiohttp.ClientProxyConnectionError():
            cause, message = "connect", f"the proxy on the way to {host} cannot be reached: {_reason(error)}"
        case aiohttp.ClientHttpProxyError():
            cause, message = "connect", f"the proxy on the way to {host} answered {error.status} {error.message}"
        case TimeoutError():
            cause, message = "timeout", _timeout(error, host)
        case aiohttp.ClientSSLError() | ssl.SSLError():
            cause, message = "tls", f"no TLS with {host}: {_tls(error)}"
        case OSError() if _has_tls_cause(error):
            cause, message = "tls", f"no TLS with {host}: {_tls(error)}"
        case aiohttp.ClientConnectorError():
            cause, message = "connect", f"{host} cannot be reached: {_reason(error)}"
        case aiohttp.ClientResponseError():
            cause, message = "closed", f"{host} does not speak HTTP as it should: {error.message}"
        case _:
            cause, message = "closed", f"{host} closed the connection: {_reason(error)}"
    return TransportError(cause, message)


def _timeout(error: BaseException, host: str) -> str:
    match error:
        case aiohttp.ConnectionTimeoutError():
            return f"{host} did not accept a connection in time"
        case aiohttp.SocketTimeoutError():
            return f"{host} fell silent"
        case _:
            return f"{host} did not answer in time"


def _has_tls_cause(error: OSError) -> bool:
    return any(isinstance(cause, ssl.SSLError) for cause in (*error.args, error.__cause__, error.__context__))


def _tls(error: BaseException) -> str:
    found = _ssl_error(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {found.verify_message.rstrip('.')}{_mend(found)}"
    if isinstance(found, ssl.SSLError) and found.reason:
        words = found.reason.replace("_", " ").lower()
        if "wrong version number" in words or "http request" in words:
            return f"{words} (does the port speak plain HTTP?)"
        if "alert" in words and ("certificate" in words or "unknown ca" in words):
            return f"{words}: it does not accept our client certificate, or wants one"
        return words
    return str(found)


_MENDS = {
    10: " (renew it, or set this machine's clock right)",  # X509_V_ERR_CERT_HAS_EXPIRED
    18: " (certificate-authority-data must hold the CA that signed it)",  # self-signed, not trusted
    19: " (certificate-authority-data must hold the CA that signed it)",  # self-signed in its chain, not trusted
    20: " (certificate-authority-data must hold the CA that signed it)",  # no issuer found
    62: " (set tls-server-name to a name that it does have)",  # host name mismatch
    64: " (set tls-server-name to a name that it does have)",  # IP address mismatch
}


def _mend(error: ssl.SSLCertVerificationError) -> str:
    return _MENDS.get(error.verify_code, "")


def _ssl_error(error: BaseException) -> BaseException:
    """The ssl module's own error, out of what aiohttp wraps it in: some wrappers are SSLErrors, without a reason."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return error.certificate_error
        case aiohttp.ClientConnectorError():
            return error.os_error
        case ssl.SSLError():
            return error
    candidates = (*error.args, error.__cause__, error.__context__)
    return next((cause for cause in candidates if isinstance(cause, ssl.SSLError)), error)


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
