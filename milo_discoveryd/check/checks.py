"""Runs the checks of `milo-discoveryd check`, in the order in which a starting daemon depends on what they verify."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import TextIO

from milo_discoveryd.check import files, listen_addresses
from milo_discoveryd.check.api_server import SHARDING, ApiServerCheck, check_leases, usable
from milo_discoveryd.check.evaluation import evaluate_source
from milo_discoveryd.check.evaluation import findings as evaluation_findings
from milo_discoveryd.check.files import check_stored_keys
from milo_discoveryd.check.finding import Finding, Level, fail, ok, warn
from milo_discoveryd.check.issuers import IssuersCheck
from milo_discoveryd.check.rules import check_rules
from milo_discoveryd.check.running_daemon import check_reload
from milo_discoveryd.config import Settings, SourceSettings, TcpAddress, UnixAddress
from milo_discoveryd.credentials.kubeconfig_files import FilesError
from milo_discoveryd.daemon_errors import ConfigError, StartError
from milo_discoveryd.engagement.claims import FleetEngagements
from milo_discoveryd.identity.token_review import TokenRejectedError, TokenReviewer, TokenReviewUnavailableError
from milo_discoveryd.kubeconfigs.cluster_ca import cluster_trust
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.sources.context import SHOWS, ContextKind, context_of, wrong_context
from milo_discoveryd.sources.keyed import KeyedSource
from milo_discoveryd.sources.kind import ProjectServer, SourceKind
from milo_discoveryd.sources.project_control_plane import PROJECT_NAME_LABEL, PROJECT_UID_LABEL
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.configured_source import ConfiguredSource, at_server
from milo_discoveryd.wiring.issuers import Issuers
from milo_discoveryd.wiring.listeners import token_reviewer
from milo_discoveryd.wiring.upstreams import discovery_upstream, project_upstream
from milo_kube.http.errors import TransportError
from milo_kube.label_selector import parse as parse_selector
from milo_kube.reflect.wire import ListPageError
from milo_kube.upstream import Upstream

_INVALID_TOKEN = "milo-discoveryd-check"  # noqa: S105 - not a secret: every API server must reject it
_SUBJECT = "token reviews"


async def check_token_reviews(reviewer: TokenReviewer) -> Finding:
    try:
        user = await reviewer.authenticate(_INVALID_TOKEN)
    except TokenRejectedError:
        return ok(_SUBJECT, f"{reviewer.origin} reviews tokens and rejects an invalid one")
    except TokenReviewUnavailableError as error:
        return fail(
            _SUBJECT,
            error.why,
            "bind the role milo-discoveryd-token-review to the user of token_review.kubeconfig, or correct that file",
        )
    return fail(
        _SUBJECT,
        f"{reviewer.origin} accepts an invalid token as {user.name}",
        "point token_review.kubeconfig to an API server that authenticates tokens",
    )


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


_BOOKMARKS_EVERY_S = 60.2  # measured on kube-apiserver; Milo's is built from the same libraries


async def check(settings: Settings, out: TextIO, environ: Mapping[str, str] = os.environ) -> int:
    """Run all checks and print each finding. Return the exit status: 0 if no check failed."""
    levels: Counter[Level] = Counter()
    async with aclosing(_findings(settings, environ)) as findings:
        async for finding in findings:
            levels[finding.level] += 1
            print(*finding.lines(), sep="\n", file=out, flush=True)
    print(_summary(levels), file=out, flush=True)
    return 1 if levels["fail"] else 0


async def log_problems(settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
    """Run the checks of the sources and of the credential issuers, and log those that fail."""
    async with aclosing(_upstreams(settings, environ)) as findings:
        async for finding in findings:
            if finding.level == "fail":
                log.warning("check failed", check=finding.subject, problem=finding.message, fix=finding.fix)


def _summary(levels: Mapping[Level, int]) -> str:
    warnings = levels["warn"]
    return (
        f"{sum(levels.values())} checks: {levels['ok']} ok, "
        f"{warnings} warning{'' if warnings == 1 else 's'}, {levels['fail']} failed"
    )


async def _findings(settings: Settings, environ: Mapping[str, str]) -> AsyncGenerator[Finding, None]:
    for source in settings.sources:
        for finding in _settings(source, settings):
            yield finding
    for finding in check_rules(settings):
        yield finding
    if (reload := await check_reload(settings)) is not None:
        yield reload
    async for finding in _upstreams(settings, environ):
        yield finding
    async for finding in _token_reviews(settings, environ):
        yield finding
    if (shares := await check_leases(settings, environ)) is not None:
        yield shares
    for finding in _listeners(settings):
        yield finding
    for finding in _files(settings):
        yield finding


def _settings(of: SourceSettings, settings: Settings) -> Iterator[Finding]:
    """Check the settings of one source."""
    subject, kind = _subject("settings", of), of.settings
    selected = f", label_selector {of.label_selector}" if of.label_selector else ""
    yield ok(subject, f"mode {of.kind}{selected}")
    if not kind.is_watched and of.label_selector:
        yield warn(subject, f"mode {of.kind} watches nothing", "label_selector has no effect: remove it")
    foreign = _foreign_labels(of)
    if foreign:
        yield fail(
            subject,
            f"label_selector requires {foreign}, but ProjectControlPlanes of Milo have only two labels: "
            f"{PROJECT_NAME_LABEL} and {PROJECT_UID_LABEL}",
            "select by those labels, or use mode project, whose objects have the projects' labels",
        )
    silence = settings.watch.silence_limit.total_seconds()
    if kind.is_watched and silence <= _BOOKMARKS_EVERY_S + 10:
        yield warn(
            subject,
            f"watch.silence_limit is {silence:g} s, but a healthy watch can be silent for {_BOOKMARKS_EVERY_S:g} s, "
            "and longer if the network is slow",
            "set it to 75s or more",
        )
    if kind.authorities_file is not None:
        yield files.ca_file(_subject("ca_file", of), kind.authorities_file)


def _foreign_labels(of: SourceSettings) -> str:
    """Return the label keys of the selector that no ProjectControlPlane of Milo has."""
    if of.kind != "project-control-plane":
        return ""
    keys = {requirement.key for requirement in parse_selector(of.label_selector).requirements}
    return ", ".join(sorted(keys - {PROJECT_NAME_LABEL, PROJECT_UID_LABEL}))


def _subject(subject: str, of: SourceSettings) -> str:
    """Return the subject of a finding, with the name of the source if it has one."""
    return f"{of.name}: {subject}" if of.name else subject


async def _upstreams(settings: Settings, environ: Mapping[str, str]) -> AsyncGenerator[Finding, None]:
    problems: list[Finding] = []
    sources: list[ConfiguredSource] = []
    unconfigured: list[tuple[SourceSettings, Upstream]] = []
    for source in settings.sources:
        watched = _load("discovery", source, partial(discovery_upstream, source, settings, environ), problems)
        leading = _load("project", source, partial(project_upstream, source, settings, environ), problems)
        if watched and leading:
            sources.append(ConfiguredSource(source, settings, environ))
        elif watched and watched[0] is not None:
            unconfigured.append((source, watched[0]))
    for problem in problems:
        yield problem
    for source, upstream in unconfigured:
        async for finding in _server(_subject("discovery", source), upstream, settings, []):
            yield finding
    async for finding in _sources(sources, settings, environ):
        yield finding


async def _sources(
    sources: Sequence[ConfiguredSource], settings: Settings, environ: Mapping[str, str]
) -> AsyncIterator[Finding]:
    """Check the sources whose kubeconfigs could be read, and the issuers if all kubeconfigs could be read.

    If the issuers cannot be built from their settings, report only that.
    """
    async with AsyncExitStack() as closing:
        issuers = None
        if len(sources) == len(settings.sources):
            issuers = _issuers(settings, sources, environ, closing)
        if isinstance(issuers, Finding):
            yield issuers
            return
        clusters: list[Cluster] = []
        fleet = FleetEngagements()
        for source in sources:
            async for finding in _source(source, settings, environ, issuers, clusters, fleet=fleet):
                yield finding
        if issuers is None:
            return
        if settings.state_directory is not None:
            for finding in check_stored_keys(
                settings.state_directory, ((source.of.name, source.origin) for source in sources)
            ):
                yield finding
        if settings.sharding.fence_credentials:
            yield _fencing(issuers)
        trusts = {
            source.of.name: (source.project, cluster_trust(source.of.settings, source.project)) for source in sources
        }
        checked = IssuersCheck(settings, issuers.assignments(), clusters, trusts)
        async for finding in checked.findings():
            yield finding


async def _source(
    source: ConfiguredSource,
    settings: Settings,
    environ: Mapping[str, str],
    issuers: Issuers | None,
    clusters: list[Cluster],
    *,
    fleet: FleetEngagements,
) -> AsyncIterator[Finding]:
    """Check the API servers, or the files, of one source, and add the clusters that it engages to `clusters`."""
    of, followed = source.of, source.followed
    watched: Upstream | None = None
    can_list = True
    if source.files is not None:
        # In a thread: a daemon whose source fails runs this check while it serves others.
        for finding in await asyncio.to_thread(list, files.kubeconfig_files(_subject("files", of), source.files)):
            yield finding
    if source.discovery is not None:
        watched = source.discovery if issuers is None else issuers.authenticated(source.discovery, of.credentials)
        async for finding in _followed(of, watched, settings, followed):
            can_list = can_list and finding.level != "fail"
            yield finding
        for finding in check_context(_subject("context", of), of.kind, watched, of.settings):
            can_list = can_list and finding.level != "fail"
            yield finding
    if can_list:
        async for finding in _objects(source, watched, settings, environ, clusters, fleet=fleet):
            yield finding
    if issuers is None:
        return
    subject = _subject("project", of)
    if source.discovery is not None and source.project.origin == source.discovery.origin:
        yield ok(subject, f"same as discovery ({source.project.origin})")
        return
    match of.settings.project_server:
        case ProjectServer.SERVES:
            async for finding in _server(subject, source.project, settings, []):
                yield finding
        case ProjectServer.IDENTITY:
            yield await usable(subject, source.project)


async def _followed(
    of: SourceSettings, watched: Upstream, settings: Settings, followed: KeyedSource
) -> AsyncIterator[Finding]:
    """Check the API server of each followed collection. Several of these servers may be contexts of Milo, which are
    paths of one server."""
    resources: dict[str, list[Resource]] = {"": []}
    for collection in followed.collections:
        resources.setdefault(collection.server, []).append(collection.watched.resource)
    for server, found in resources.items():
        subject = _subject(f"discovery of {found[0].plural}" if server else "discovery", of)
        async for finding in _server(subject, at_server(watched, server), settings, found):
            yield finding


async def _objects(
    source: ConfiguredSource,
    watched: Upstream | None,
    settings: Settings,
    environ: Mapping[str, str],
    clusters: list[Cluster],
    *,
    fleet: FleetEngagements,
) -> AsyncIterator[Finding]:
    """List a source completely, and add the clusters that it engages to `clusters`."""
    subject = _subject("clusters", source.of)
    try:
        found = await evaluate_source(source, watched, settings, environ, fleet)
    except (FilesError, TransportError, ListPageError) as error:
        yield fail(subject, str(error), "see the findings about the API server or the files")
        return
    clusters += found.clusters
    if not source.followed.targets:
        refuses = watched is not None and context_of(watched.server).kind is ContextKind.ORGANIZATION
        for finding in evaluation_findings(subject, found, refuses=refuses):
            yield finding


async def _token_reviews(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    async with AsyncExitStack() as closing:
        try:
            reviewer = token_reviewer(settings, environ, closing)
        except ConfigError as error:
            yield fail(
                "token reviews", str(error), "correct the kubeconfig, or set another one in token_review.kubeconfig"
            )
            return
        if reviewer is not None:
            yield await check_token_reviews(reviewer)


def _issuers(
    settings: Settings, sources: Sequence[ConfiguredSource], environ: Mapping[str, str], closing: AsyncExitStack
) -> Issuers | Finding:
    try:
        made = Issuers(settings, sources, environ, closing, run="check")
        for source in sources:
            if source.discovery is not None:
                made.authenticated(source.discovery, source.of.credentials)
    except ConfigError as error:
        return fail("kubeconfigs", str(error), "correct kubeconfigs.issuers or `credentials` in the configuration")
    except StartError as error:
        return fail(SHARDING, str(error), "correct the settings in `sharding`")
    return made


def _fencing(issuers: Issuers) -> Finding:
    try:
        issuers.fencing()
    except ConfigError as error:
        return fail(
            SHARDING,
            str(error),
            "use only issuers of type token-request with bound: true, or disable sharding.fence_credentials",
        )
    return ok(SHARDING, "all kubeconfigs can be revoked")


async def _server(
    name: str, upstream: Upstream, settings: Settings, resources: Sequence[Resource]
) -> AsyncIterator[Finding]:
    timeout_s = settings.watch.connect_timeout.total_seconds()
    async with aclosing(Transport(upstream, connect_timeout_s=timeout_s)) as transport:
        checked = ApiServerCheck(name, upstream, transport)
        async for finding in checked.watchable(resources):
            yield finding


def _load(
    name: str, of: SourceSettings, load: Callable[[], Upstream | None], problems: list[Finding]
) -> list[Upstream | None]:
    """Load an upstream, and return it in a list; the list is empty if the upstream cannot be loaded.

    Only new problems are added to `problems`, because the discovery kubeconfig and the project kubeconfig may be the
    same file.
    """
    try:
        return [load()]
    except ConfigError as error:
        flag = f"--{name}-kubeconfig FILE, or {name}_kubeconfig in the configuration file"
        another = f"{name}_kubeconfig of the source {of.name}" if of.name else flag
        fix = f"correct the kubeconfig, or set another one: {another}"
        known = {problem.message for problem in problems}
        problems += [fail(f"{name} kubeconfig", problem, fix) for problem in error.problems if problem not in known]
        return []


def _listeners(settings: Settings) -> Iterator[Finding]:
    sockets = {
        listener.address: listen_addresses.unix_socket(listener.address)
        for listener in settings.listen
        if isinstance(listener.address, UnixAddress)
    }
    # When the check runs beside the daemon, ports in use are probably the daemon's own.
    daemon_is_running = any(finding.level == "warn" for finding in sockets.values())
    ports: list[TcpAddress] = []

    def port(subject: str, address: TcpAddress) -> Finding:
        found = listen_addresses.used_twice(subject, address, ports)
        ports.append(address)
        return found or listen_addresses.tcp_port(subject, address, daemon_is_running=daemon_is_running)

    for listener in settings.listen:
        address = listener.address
        if isinstance(address, UnixAddress):
            yield sockets[address]
        else:
            yield port("listen", address)
        if listener.tls is not None:
            yield listen_addresses.certificate(f"listen {address}", listener.tls)
        if listener.group is not None:
            yield listen_addresses.group(f"listen {address} group", listener.group)
        if listener.owner is not None:
            yield listen_addresses.owner(f"listen {address} owner", listener.owner)
    if settings.socket.group is not None:
        yield listen_addresses.group("socket.group", settings.socket.group)
    if settings.http_listen is not None:
        yield port("http_listen", settings.http_listen)


def _files(settings: Settings) -> Iterator[Finding]:
    if settings.state_directory is not None:
        yield files.state_directory(settings.state_directory)
    if settings.audit.file is not None:
        yield files.audit_file(settings.audit.file)
    if settings.traces.endpoint is not None:
        yield files.trace_exporter()
