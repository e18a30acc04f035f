"""Checks whether the context of Milo that the discovery kubeconfig leads to is one that the mode can work in."""

from collections.abc import Iterator

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.sources.context import ContextKind, MiloContext, context_of
from milo_discoveryd.sources.kind import SourceKind

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


def check_context(subject: str, mode: str, upstream: Upstream, kind: SourceKind) -> Iterator[Finding]:
    if not kind.contexts:
        return
    context = context_of(upstream.server)
    if context.kind in kind.contexts:
        shown = f"{context}, which shows {_SHOWS[context.kind]}"
        yield ok(subject, "; ".join(filter(None, (shown, kind.unseen))))
    else:
        yield _wrong(subject, mode, context, kind.contexts)


def _wrong(subject: str, mode: str, context: MiloContext, accepted: tuple[ContextKind, ...]) -> Finding:
    servers = " or ".join(f"{_SERVERS[kind]} ({kind.value})" for kind in accepted)
    return fail(
        subject,
        f"the server of the discovery kubeconfig is the context of {context}, which shows {_SHOWS[context.kind]}; "
        f"mode {mode} cannot work there",
        f"set the kubeconfig's server to {servers}",
    )
