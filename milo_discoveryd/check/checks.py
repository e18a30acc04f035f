"""The checks for given settings, in the order in which a starting daemon needs what they verify."""

import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from typing import TextIO

from milo_discoveryd.check import files, listen_addresses
from milo_discoveryd.check.api_server import ApiServerCheck, usable
from milo_discoveryd.check.contexts import check_context
from milo_discoveryd.check.finding import Finding, Level, fail, ok, warn
from milo_discoveryd.check.issuers import check_issuers
from milo_discoveryd.check.rules import check_rules
from milo_discoveryd.check.sharding import SUBJECT, check_leases
from milo_discoveryd.check.token_review import check_token_reviews
from milo_discoveryd.config import Settings, TcpAddress, UnixAddress
from milo_discoveryd.credentials import Upstream
from milo_discoveryd.credentials.kubeconfig_files import KubeconfigFiles
from milo_discoveryd.daemon_errors import ConfigError, StartError
from milo_discoveryd.model.resource import Resource
from milo_discoveryd.modes import mode as modes
from milo_discoveryd.modes.mode import FileMode, FixedMode
from milo_discoveryd.watchers.transport import Transport
from milo_discoveryd.wiring.issuers import Issuers
from milo_discoveryd.wiring.listeners import token_reviewer
from milo_discoveryd.wiring.mode import collections_of, discovery_of, mode_of, project_of
from milo_discoveryd.wiring.source import FollowedCollection

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


def _summary(levels: Mapping[Level, int]) -> str:
    warnings = levels["warn"]
    return (
        f"{sum(levels.values())} checks: {levels['ok']} ok, "
        f"{warnings} warning{'' if warnings == 1 else 's'}, {levels['fail']} failed"
    )


async def _findings(settings: Settings, environ: Mapping[str, str]) -> AsyncGenerator[Finding, None]:
    for each in settings.by_source.values():
        for finding in _settings(each):
            yield finding
    for finding in check_rules(settings):
        yield finding
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


def _settings(settings: Settings) -> Iterator[Finding]:
    """Check the settings of one source: see `Settings.by_source`."""
    subject = _subject("settings", settings)
    is_fixed = _is_fixed(settings)
    selected = f", label_selector {settings.label_selector}" if settings.label_selector else ""
    yield ok(subject, f"mode {settings.mode}{selected}")
    if is_fixed and settings.label_selector:
        yield warn(subject, f"mode {settings.mode} watches nothing", "label_selector has no effect: remove it")
    silence = settings.watch.silence_limit.total_seconds()
    if not is_fixed and silence <= _BOOKMARKS_EVERY_S + 10:
        yield warn(
            subject,
            f"watch.silence_limit is {silence:g} s, but a healthy watch can be silent for {_BOOKMARKS_EVERY_S:g} s",
            "set it to 75s or more",
        )
    if settings.declarative is not None and settings.declarative.ca_file is not None:
        yield files.ca_file(_subject("declarative.ca_file", settings), settings.declarative.ca_file)


def _subject(subject: str, settings: Settings) -> str:
    """Return the subject of a finding, with the name of the source if it is an item of `sources`."""
    return f"{settings.sources[0].name}: {subject}" if settings.sources else subject


def _is_fixed(settings: Settings) -> bool:
    """Return whether the mode knows its clusters from the start, and watches nothing."""
    return modes.is_fixed(settings.mode)


async def _upstreams(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    problems: list[Finding] = []
    loaded: dict[str, tuple[Settings, Upstream | None, Upstream | None]] = {}
    for name, of in settings.by_source.items():
        if modes.reads_files(of.mode):
            loaded[name] = of, None, project_of(of, environ)
            continue
        watched = None
        if not _is_fixed(of):
            watched = _load("discovery", partial(discovery_of, of, environ), problems)
        leading = _load("project", partial(project_of, of, environ), problems)
        loaded[name] = of, watched, leading
    for problem in problems:
        yield problem
    projects = {name: leading for name, (_, _, leading) in loaded.items() if leading is not None}
    async with AsyncExitStack() as closing:
        issuers = _issuers(settings, projects, environ, closing) if len(projects) == len(loaded) else None
        if isinstance(issuers, Finding):
            yield issuers
            return
        for of, watched, leading in loaded.values():
            async for finding in _source(of, watched, leading, issuers):
                yield finding
        if issuers is None:
            return
        if settings.sharding.fence_credentials:
            yield _fencing(issuers)
        assigned = [each.issuer for each in issuers.assignments()]
        ttl_s = settings.kubeconfigs.default_ttl.total_seconds()
        for finding in await check_issuers(assigned, ttl_s):
            yield finding


async def _source(
    settings: Settings, watched: Upstream | None, leading: Upstream | None, issuers: Issuers | None
) -> AsyncIterator[Finding]:
    """Check the API servers, or the files, of one source."""
    if modes.reads_files(settings.mode):
        assert leading is not None
        mode = mode_of(settings, leading, None)
        assert isinstance(mode, FileMode)
        for finding in files.kubeconfig_files(_subject("files", settings), mode):
            yield finding
        return
    if watched is not None:
        followed = watched if issuers is None else issuers.authenticated(watched, settings.watch.credentials)
        collections = [] if leading is None else _collections(settings, leading, watched)
        resources = [each.watched.resource for each in collections]
        async for finding in _server(_subject("discovery", settings), followed, settings, resources):
            yield finding
        if collections:
            async for finding in check_context(_subject("context", settings), settings, followed, collections[0]):
                yield finding
    if leading is not None and issuers is not None:
        async for finding in _project(settings, watched, leading):
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
    settings: Settings, projects: Mapping[str, Upstream], environ: Mapping[str, str], closing: AsyncExitStack
) -> Issuers | Finding:
    try:
        # Only files are used of the modes here, and these have no context.
        modes_of = {name: mode_of(of, projects[name], None) for name, of in settings.by_source.items()}
        in_files = {name: KubeconfigFiles(mode) for name, mode in modes_of.items() if isinstance(mode, FileMode)}
        made = Issuers(settings, projects, in_files, environ, closing, run="check")
        for name, of in settings.by_source.items():
            made.authenticated(projects[name], of.watch.credentials)
    except ConfigError as error:
        return fail("kubeconfigs", str(error), "correct kubeconfigs.issuers or watch.credentials in the configuration")
    except StartError as error:
        return fail(SUBJECT, str(error), "correct the settings in sharding")
    return made


def _fencing(issuers: Issuers) -> Finding:
    try:
        issuers.fencing()
    except ConfigError as error:
        return fail(
            SUBJECT,
            str(error),
            "use only issuers of type token-request with bound: true, or disable sharding.fence_credentials",
        )
    return ok(SUBJECT, "all kubeconfigs can be revoked")


async def _project(settings: Settings, watched: Upstream | None, leading: Upstream) -> AsyncIterator[Finding]:
    subject = _subject("project", settings)
    if watched is not None and leading.origin == watched.origin:
        yield ok(subject, f"same as discovery ({leading.origin})")
    elif settings.mode == "project-control-plane":
        # The kubeconfig's scheme, CA and identity are used at the clusters' own addresses; its server is not contacted.
        yield await usable(subject, leading)
    else:
        async for finding in _server(subject, leading, settings, []):
            yield finding


async def _server(
    name: str, upstream: Upstream, settings: Settings, resources: Sequence[Resource]
) -> AsyncIterator[Finding]:
    timeout_s = settings.watch.connect_timeout.total_seconds()
    async with aclosing(Transport(upstream, connect_timeout_s=timeout_s)) as transport:
        checked = ApiServerCheck(name, upstream, transport)
        async for finding in checked.watchable(resources):
            yield finding


def _load(name: str, load: Callable[[], Upstream | None], problems: list[Finding]) -> Upstream | None:
    """Load an upstream. Only new problems are added to `problems`, because both kubeconfigs may be the same file."""
    try:
        return load()
    except ConfigError as error:
        fix = f"correct the kubeconfig, or set another one: --{name}-kubeconfig FILE, or {name}_kubeconfig in the file"
        known = {problem.message for problem in problems}
        problems += [fail(f"{name} kubeconfig", problem, fix) for problem in error.problems if problem not in known]
        return None


def _listeners(settings: Settings) -> Iterator[Finding]:
    sockets = {
        each.address: listen_addresses.unix_socket(each.address)
        for each in settings.listen
        if isinstance(each.address, UnixAddress)
    }
    # When the check runs beside the daemon, ports in use are probably the daemon's own.
    daemon_is_running = any(finding.level == "warn" for finding in sockets.values())
    ports: list[TcpAddress] = []

    def port(subject: str, address: TcpAddress) -> Finding:
        found = listen_addresses.used_twice(subject, address, ports)
        ports.append(address)
        return found or listen_addresses.tcp_port(subject, address, daemon_is_running=daemon_is_running)

    for each in settings.listen:
        address = each.address
        if isinstance(address, UnixAddress):
            yield sockets[address]
        else:
            yield port("listen", address)
        if each.tls is not None:
            yield listen_addresses.certificate(f"listen {address}", each.tls)
        if each.group is not None:
            yield listen_addresses.group(f"listen {address} group", each.group)
        if each.owner is not None:
            yield listen_addresses.owner(f"listen {address} owner", each.owner)
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


def _collections(settings: Settings, project: Upstream, discovery: Upstream) -> list[FollowedCollection]:
    """Return what a source watches, within its selectors."""
    mode = mode_of(settings, project, discovery)
    return [] if isinstance(mode, FixedMode | FileMode) else collections_of(settings, mode)
