"""Checks whether the context of Milo that the discovery kubeconfig leads to is one that the mode can work in."""

from collections.abc import Iterator

from milo_discoveryd.check.finding import Finding, fail, ok
from milo_discoveryd.sources.context import SHOWS, context_of, wrong_context
from milo_discoveryd.sources.kind import SourceKind
from milo_kube.upstream import Upstream


def check_context(subject: str, mode: str, upstream: Upstream, kind: SourceKind) -> Iterator[Finding]:
    if not kind.contexts:
        return
    wrong = wrong_context(mode, upstream.server, kind.contexts)
    if wrong is not None:
        yield fail(subject, *wrong)
        return
    context = context_of(upstream.server)
    shown = f"{context}, which shows {SHOWS[context.kind]}"
    yield ok(subject, "; ".join(filter(None, (shown, kind.unseen))))
