"""A real HTTPS server on loopback with responses that the test defines."""

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

import trustme
from aiohttp import web

from milo_kube.credential import Credential, Secret
from milo_kube.credential_providers import StaticCredential
from milo_kube.upstream import Upstream

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class ApiServer:
    """An HTTPS server; `answer` is read at each request, so that a test can change it at run time."""

    answer: Handler
    authority: trustme.CA = field(default_factory=trustme.CA)
    leaf: trustme.LeafCert | None = None
    wants_client_certificate_of: trustme.CA | None = None
    requests: list[web.Request] = field(default_factory=list)
    port: int = 0

    async def __aenter__(self) -> Self:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.requests.append(request)
            return await self.answer(request)

        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (self.leaf or self.authority.issue_cert("localhost", "127.0.0.1")).configure_cert(self.context)
        if self.wants_client_certificate_of is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.wants_client_certificate_of.configure_trust(self.context)
        self._server = web.Server(handle, handler_cancellation=True)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=0)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.context)
        await self._site.start()
        _, self.port = self._runner.addresses[0][:2]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def refuse(self) -> None:
        """Refuse new connections; open ones are served."""
        await self._site.stop()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def pem(self) -> bytes:
        return self.authority.cert_pem.bytes()

    def headers(self, name: str) -> list[str | None]:
        return [request.headers.get(name) for request in self.requests]


def upstream(to: ApiServer, /, **differing: object) -> Upstream:
    given: dict[str, object] = {
        "server": to.url,
        "origin": "test",
        "credentials": StaticCredential(Credential(token=Secret("t0"))),
        "authorities": to.pem,
    }
    return Upstream(**(given | differing))  # type: ignore[arg-type]


def answering(body: bytes = b"{}", status: int = 200, headers: dict[str, str] | None = None) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status, headers=headers)

    return answer
