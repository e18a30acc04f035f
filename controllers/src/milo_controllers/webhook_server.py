"""The HTTPS server of an operator's webhooks, whose certificate is replaced while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from milo_controllers.webhooks import Webhooks
from milo_kube.credential import CredentialError
from milo_kube.file_content import FileContent
from milo_kube.http.server import HttpServer
from milo_kube.http.tls import server_context
from milo_kube.tls_identity import as_file

log = logging.getLogger("milo_controllers.webhooks")

_CONNECTIONS = 1024
"""An API server opens a connection for each concurrent review: by default it admits 200 concurrent writes."""
_BODY_LIMIT = 10 << 20
"""Maximum bytes of a review: two objects, each of up to 1.5 MiB, or one all of whose characters are `<`, `>` or `&`,
which API servers write as six bytes. More would block the event loop for seconds."""
_HELD_LIMIT = 64 << 20
"""Maximum bytes of all concurrent reviews."""
_LOOK_EVERY_S = 10.0
_FINISH_S = 3.0
"""How long reviews that have begun are still answered at the end."""


class WebhookServer(NamedTuple):
    """Where an operator serves its webhooks, and with which certificate.

    `certificate` and `key` are files in PEM, such as those of a mounted Secret of cert-manager. They are read again
    when they are replaced.
    """

    certificate: str | Path
    key: str | Path
    listen: str = ":9443"
    source: str = ""
    """The source whose projects these are, if the daemon has several named ones."""

    def check(self) -> None:
        """Raise ValueError unless `listen` is HOST:PORT or :PORT."""
        _, separator, port = self.listen.rpartition(":")
        if not separator or not port.isdecimal():
            raise ValueError(f"webhooks: listen={self.listen!r}: write HOST:PORT or :PORT")


class _ServerCertificate:
    """The TLS context with the certificate of the files. A pair that does not fit together is not used."""

    def __init__(self, server: WebhookServer) -> None:
        self._files = server
        self._certificate = FileContent(Path(server.certificate))
        self._key = FileContent(Path(server.key))
        self._used: tuple[bytes, bytes] = (b"", b"")
        self.context = _context()

    def load(self) -> bool:
        """Make another context if the files changed, and return whether they did. Raises CredentialError."""
        found = self._certificate.read(), self._key.read()
        if found == self._used:
            return False
        # The one in use would keep its certificate if the new one has a key of another type, and would break by a pair
        # that does not fit.
        context = _context()
        try:
            with as_file(b"\n".join(found)) as path:  # the files may have been replaced since they were read
                context.load_cert_chain(path, password=lambda: b"")  # an encrypted key would prompt
        except (OSError, ValueError) as error:
            raise CredentialError(
                f"{self._files.certificate} and {self._files.key} cannot be used for webhooks: {error}"
            ) from None
        self._used, self.context = found, context
        return True


def _context() -> ssl.SSLContext:
    context = server_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@asynccontextmanager
async def serve_webhooks(webhooks: Webhooks, at: WebhookServer) -> AsyncIterator[str]:
    """Serve while the body runs, and yield the URL. Raises OSError and CredentialError."""
    at.check()
    webhooks.source = at.source
    certificate = _ServerCertificate(at)
    certificate.load()
    server = HttpServer(
        webhooks.answer,
        connections=_CONNECTIONS,
        body_limit=_BODY_LIMIT,
        held_limit=_HELD_LIMIT,
        tls=certificate.context,
    )
    host, _, port = at.listen.rpartition(":")
    url = await server.start(host.strip("[]") or None, int(port))
    following = asyncio.create_task(_follow(certificate, server), name="certificate of webhooks")
    try:
        yield url
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await server.stop(within_s=_FINISH_S)
        webhooks.close()


async def _follow(certificate: _ServerCertificate, server: HttpServer) -> None:
    problem = ""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            if certificate.load():
                server.tls = certificate.context
                log.info("the certificate of the webhooks was replaced")
            problem = ""
        except CredentialError as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("%s; the previous certificate is still in use", problem)
