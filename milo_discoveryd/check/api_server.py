"""Sends an API server the requests that the daemon will send, and reports each step."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime

import msgspec

from milo_discoveryd.check import api_responses
from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import Settings
from milo_discoveryd.daemon_errors import EXPECTED, ConfigError
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.sharding import fleet_digest, lease_client, member_name
from milo_kube.act_as import ActAs
from milo_kube.credential import CredentialError
from milo_kube.exec_plugin import TIMEOUT_S
from milo_kube.http.errors import TransportError
from milo_kube.tls_identity import expiry_of
from milo_kube.upstream import Upstream

SHARDING = "sharding"
"""The subject of the finding about the Leases of the shard group."""
REQUEST_TIMEOUT_S = 15.0
CREDENTIAL_TIMEOUT_S = TIMEOUT_S + 5.0
"""Longer than an exec plugin may run, so that its own error is reported."""
WATCH_S = 1  # duration of the test watch

_IDENTITY = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_ACCESS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_BODY_LIMIT = 1 << 20  # bytes of a watch's response that are kept and examined


class ApiServerCheck:
    """A check of one API server, in steps; if a step fails, those that depend on it are skipped."""

    def __init__(self, name: str, upstream: Upstream, transport: Transport) -> None:
        self._name = name
        self._upstream = upstream
        self._transport = transport

    async def watchable(self, resources: Iterable[Resource]) -> AsyncIterator[Finding]:
        """Check name resolution, connection, TLS, identity; then permissions, a list and a watch of each resource."""
        async for finding in self._guarded("reach", self._reach()):
            yield finding
            if finding.level == "fail":
                return
        for resource in resources:
            for step, steps in (
                ("permissions", self._permissions(resource)),
                ("list and watch", self._list_and_watch(resource)),
            ):
                async for finding in self._guarded(step, steps):
                    yield finding

    async def impersonating(self, users: Iterable[ActAs]) -> AsyncIterator[Finding]:
        """Check whether the identity may impersonate these users."""
        for acting in users:
            async for finding in self._guarded("impersonation", self._impersonation(acting)):
                yield finding

    async def _guarded(self, step: str, steps: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
        try:
            async for finding in steps:
                yield finding
        except TransportError as error:
            yield api_responses.unreachable(self._subject(step), error, self._upstream.origin)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield fail(
                self._subject(step),
                f"{self._transport.host} does not answer like a Kubernetes API server: {error}",
                f"check that {self._upstream.origin} has the right server URL, including the path",
            )

    async def _reach(self) -> AsyncIterator[Finding]:
        await self._upstream.access(within_s=CREDENTIAL_TIMEOUT_S)
        answer = await self._transport.post(_IDENTITY, api_responses.identity_review(), timeout_s=REQUEST_TIMEOUT_S)
        yield ok(self._subject("reach"), f"{self._transport.host} answers ({self._upstream.origin})")
        # The identity is checked last: an expired certificate or a wrong clock may be why the server rejects it, and
        # all further checks need it.
        for finding in (await self._certificate(), api_responses.clock(answer.headers.get("Date"), datetime.now(UTC))):
            if finding is not None:
                yield finding
        yield api_responses.identity(self._subject("identity"), answer.status, answer.body, self._upstream.origin)

    async def _certificate(self) -> Finding | None:
        certificate = self._upstream.credentials.held().certificate
        if certificate is None:
            return None
        expiry = expiry_of(certificate.chain, datetime.now(UTC))
        if not expiry.is_soon:
            return None
        return warn(
            self._subject("identity"),
            f"the client certificate {'expired' if expiry.is_expired else 'expires'} at {expiry}",
            f"renew it in {self._upstream.origin}; files are reloaded when they change",
        )

    async def _permissions(self, resource: Resource) -> AsyncIterator[Finding]:
        reviews = {verb: api_responses.access_review(resource, verb) for verb in api_responses.VERBS}
        allowed = await self._allowed(reviews)
        yield api_responses.permissions(self._subject("permissions"), resource, allowed)

    async def _impersonation(self, acting: ActAs) -> AsyncIterator[Finding]:
        allowed = await self._allowed(api_responses.impersonation_reviews(acting))
        yield api_responses.impersonation(self._subject("impersonation"), acting.user, allowed)

    async def _allowed(self, reviews: Mapping[str, bytes]) -> Mapping[str, bool | None]:
        allowed: dict[str, bool | None] = {}
        for about, review in reviews.items():
            answer = await self._transport.post(_ACCESS, review, timeout_s=REQUEST_TIMEOUT_S)
            allowed[about] = api_responses.allowed(answer.status, answer.body)
        return allowed

    async def _list_and_watch(self, resource: Resource) -> AsyncIterator[Finding]:
        selected = resource.query
        answer = await self._transport.get(resource.path, [*selected, ("limit", "1")], timeout_s=REQUEST_TIMEOUT_S)
        yield api_responses.listing(self._subject("list"), resource, answer.status, answer.body)
        if answer.status != 200:
            return
        query = [
            *selected,
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(WATCH_S)),
            ("resourceVersion", api_responses.version_of(answer.body)),
        ]
        opened = self._transport.stream(
            resource.path, query, connect_timeout_s=REQUEST_TIMEOUT_S, silence_s=REQUEST_TIMEOUT_S
        )
        # Read to the end: a proxy that cuts off or buffers long responses still forwards their headers.
        async with opened as stream, aclosing(stream.chunks()) as chunks:
            body = b""
            async for chunk in chunks:
                if len(body) + len(chunk) <= _BODY_LIMIT:
                    body += chunk
        yield api_responses.watching(self._subject("watch"), resource, stream.status, body)

    def _subject(self, step: str) -> str:
        return f"{self._name} {step}"


async def usable(name: str, upstream: Upstream) -> Finding:
    """Check the credential of a kubeconfig whose server the daemon does not contact."""
    try:
        await upstream.credentials.credential(within_s=CREDENTIAL_TIMEOUT_S)
    except CredentialError as error:
        return fail(f"{name} credential", str(error), f"fix the credential in {upstream.origin}")
    return ok(f"{name} credential", f"available ({upstream.origin})")


async def check_leases(settings: Settings, environ: Mapping[str, str]) -> Finding | None:
    """Check the Leases of the shard group. Return None if no group is configured."""
    group = settings.sharding.group
    if group is None:
        return None
    try:
        async with AsyncExitStack() as closing:
            name = member_name(settings, environ)
            leases = await lease_client(settings, group, environ, closing).read()
    except EXPECTED as error:
        return fail(
            SHARDING, str(error), "correct the settings in `sharding`, or bind the Role in deploy/components/sharding"
        )
    if problems := [*leases.all_problems]:
        return warn(
            SHARDING, "; ".join(problems), "delete each of these Leases if no daemon of the group runs under its name"
        )
    try:
        fleet = fleet_digest(ConfiguredSource(source, settings, environ) for source in settings.sources)
    except ConfigError as error:
        return warn(
            SHARDING,
            f"the sources of {name} cannot be compared with those of the other members of group {group}: {error}",
            "correct the source's kubeconfig",
        )
    if others := sorted(
        member.member for member in leases.members.values() if member.is_held and member.fleet != fleet
    ):
        return warn(
            SHARDING,
            f"the sources or selectors of {', '.join(others)} in group {group} differ from the settings of {name}",
            "give all members of the group the same settings: clusters that one of them does not see may have no owner",
        )
    return ok(SHARDING, f"member {name} can read the Leases of group {group} ({len(leases.members)} members have one)")
