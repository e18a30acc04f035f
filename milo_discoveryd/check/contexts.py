"""Checks whether the context of Milo that the discovery kubeconfig leads to is one that the mode can work in."""

from collections.abc import Iterator

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.sources.context import ContextKind, MiloContext, context_of

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


def check_context(subject: str, mode: str, upstream: Upstream, accepted: tuple[ContextKind, ...]) -> Iterator[Finding]:
    if not accepted:
        return
    context = context_of(upstream.server)
    if context.kind in accepted:
        unseen = "; that a project was deleted, or created again under its name, cannot be seen from here"
        unseen = unseen if context.kind is ContextKind.PROJECT else ""
        yield ok(subject, f"{context}, which shows {_SHOWS[context.kind]}{unseen}")
    else:
        yield _wrong(subject, mode, context, accepted)


def _wrong(subject: str, mode: str, context: MiloContext, accepted: tuple[ContextKind, ...]) -> Finding:
    servers = " or ".join(f"{_SERVERS[kind]} ({kind.value})" for kind in accepted)
    return fail(
        subject,
        f"the server of the discovery kubeconfig is the context of {context}, which shows {_SHOWS[context.kind]}; "
        f"mode {mode} cannot work there",
        f"set the kubeconfig's server to {servers}",
    )
