"""Asks an API server what the daemon will ask it, and tells what came of it step by step."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec
from cryptography import x509

from milo_discoveryd.check import answers
from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.daemon_errors import DiscoveryError, TransportError
from milo_discoveryd.modes.mode import Resource
from milo_discoveryd.watchers.transport import Transport

REQUEST_TIMEOUT_S = 15.0
WATCH_S = 1  # how long a watch is asked to last: long enough to be one

_IDENTITY = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_ACCESS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_BODY_LIMIT = 1 << 20  # of what a watch says: more than enough to see whether it is one
_EXPIRES_SOON_S = 24 * 3600


class ApiServerCheck:
    """Each step yields findings; one that finds the way barred ends the steps after it."""

    def __init__(self, name: str, upstream: Upstream, transport: Transport) -> None:
        self._name = name
        self._upstream = upstream
        self._transport = transport

    async def reachable(self) -> AsyncIterator[Finding]:
        """Can it be resolved, connected to, trusted, and does it know us?"""
        async for finding in self._guarded("reach", self._reach()):
            yield finding

    async def watchable(self, resource: Resource, label_selector: str) -> AsyncIterator[Finding]:
        """All of `reachable`, and may we and can we list and watch?"""
        async for finding in self._guarded("reach", self._reach()):
            yield finding
            if finding.level == "fail":
                return
        for what, steps in (
            ("permissions", self._permissions(resource)),
            ("list and watch", self._list_and_watch(resource, label_selector)),
        ):
            async for finding in self._guarded(what, steps):
                yield finding

    async def _guarded(self, what: str, steps: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
        try:
            async for finding in steps:
                yield finding
        except TransportError as error:
            yield answers.unreachable(self._what(what), error)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield fail(
                self._what(what),
                f"{self._transport.host} answers, but not as an API server of Kubernetes does: {error}",
                f"does {self._upstream.origin} name the right server, with the path that it needs?",
            )

    async def _reach(self) -> AsyncIterator[Finding]:
        answer = await self._transport.post(_IDENTITY, answers.identity_review(), timeout_s=REQUEST_TIMEOUT_S)
        yield ok(self._what("reach"), f"{self._transport.host} answers ({self._upstream.origin})")
        yield answers.identity(self._what("identity"), answer.status, answer.body, self._upstream.origin)
        for remark in (await self._certificate(), answers.clock(answer.headers.get("Date"), datetime.now(UTC))):
            if remark is not None:
                yield remark

    async def _certificate(self) -> Finding | None:
        certificate = (await self._upstream.credentials.credential()).certificate
        if certificate is None:
            return None
        ends = x509.load_pem_x509_certificate(certificate.chain).not_valid_after_utc
        left = ends - datetime.now(UTC)
        if left.total_seconds() > _EXPIRES_SOON_S:
            return None
        return warn(
            self._what("identity"),
            f"our client certificate ends at {ends:%Y-%m-%d %H:%M} UTC",
            f"renew it in {self._upstream.origin}; files are read again when they change",
        )

    async def _permissions(self, resource: Resource) -> AsyncIterator[Finding]:
        allowed: dict[str, bool | None] = {}
        for verb in answers.VERBS:
            review = answers.access_review(resource, verb)
            answer = await self._transport.post(_ACCESS, review, timeout_s=REQUEST_TIMEOUT_S)
            allowed[verb] = answers.allowed(answer.status, answer.body)
        yield answers.permissions(self._what("permissions"), resource, allowed)

    async def _list_and_watch(self, resource: Resource, label_selector: str) -> AsyncIterator[Finding]:
        selected = [("labelSelector", label_selector)] if label_selector else []
        answer = await self._transport.get(resource.path, [*selected, ("limit", "1")], timeout_s=REQUEST_TIMEOUT_S)
        yield answers.listing(self._what("list"), resource, answer.status, answer.body)
        if answer.status != 200:
            return
        query = [
            *selected,
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(WATCH_S)),
            ("resourceVersion", answers.version_of(answer.body)),
        ]
        async with self._transport.stream(
            resource.path, query, connect_timeout_s=REQUEST_TIMEOUT_S, silence_s=REQUEST_TIMEOUT_S
        ) as stream:
            # To its end: a proxy that cuts or holds back long answers lets the head of them through.
            async with aclosing(stream.chunks()) as chunks:
                body = b""
                async for chunk in chunks:
                    if len(body) + len(chunk) <= _BODY_LIMIT:
                        body += chunk
            yield answers.watching(self._what("watch"), resource, stream.status, body)

    def _what(self, step: str) -> str:
        return f"{self._name} {step}"


async def usable(name: str, upstream: Upstream) -> Finding:
    """Of a kubeconfig whose server is not spoken to by us: can its credential be had?"""
    try:
        await upstream.credentials.credential()
    except DiscoveryError as error:
        return fail(f"{name} credential", str(error), f"mend the credential that {upstream.origin} names")
    return ok(f"{name} credential", f"can be had ({upstream.origin})")
