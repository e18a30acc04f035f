"""Checks whether the context of Milo that the discovery kubeconfig leads to is one that the mode can work in."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from milo_discoveryd.check.effective_rights import listed_objects
from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.config import Settings
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.model.observation import Refused
from milo_discoveryd.sources.context import ContextKind, MiloContext, context_of
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_kube.http.errors import TransportError
from milo_kube.reflect.wire import ListPageError

_SHOWS = {
    ContextKind.ROOT: "all projects, of all organizations",
    ContextKind.ORGANIZATION: "the projects of the organization",
    ContextKind.PROJECT: "the project's own objects, and no projects",
    ContextKind.USER: "what the user may see, and no organization's projects only",
}
_SERVERS = {
    ContextKind.ROOT: "https://MILO",
    ContextKind.ORGANIZATION: "https://MILO/apis/resourcemanager.miloapis.com/v1alpha1/organizations/NAME/control-plane",
    ContextKind.PROJECT: "https://MILO/apis/resourcemanager.miloapis.com/v1alpha1/projects/NAME/control-plane",
}


async def check_context(
    subject: str, source: ConfiguredSource, upstream: Upstream, settings: Settings
) -> AsyncIterator[Finding]:
    accepted = source.of.settings.contexts
    if not accepted:
        return
    context = context_of(upstream.server)
    if context.kind not in accepted:
        yield _wrong(subject, source.of.kind, context, accepted)
        return
    yield ok(subject, f"{context}, which shows {_SHOWS[context.kind]}")
    if context.kind is not ContextKind.ORGANIZATION:
        return
    refused = engageable = 0
    try:
        async with aclosing(Transport(upstream, response_limit=settings.watch.response_limit)) as transport:
            async for seen in listed_objects(transport, settings, source.followed.collections[0]):
                refused += isinstance(seen, Refused)
                engageable += not isinstance(seen, Refused)
    except (TransportError, ListPageError) as error:
        yield warn(subject, f"unknown whether the server sends projects of other organizations: {error}")
        return
    if refused:
        yield warn(
            subject,
            f"the server sent {refused} projects of other organizations, which the daemon refuses, and {engageable} of "
            f"{context}",
            "the server ignores label selectors: check which proxy is in front of Milo, and what the identity may list",
        )
    else:
        yield ok(subject, f"{engageable} projects of {context}, 0 of other organizations refused")


def _wrong(subject: str, mode: str, context: MiloContext, accepted: tuple[ContextKind, ...]) -> Finding:
    servers = " or ".join(f"{_SERVERS[kind]} ({kind.value})" for kind in accepted)
    return fail(
        subject,
        f"the server of the discovery kubeconfig is the context of {context}, which shows {_SHOWS[context.kind]}; "
        f"mode {mode} cannot work there",
        f"set the kubeconfig's server to {servers}",
    )
