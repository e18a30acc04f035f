"""Every check there is for some settings, in the order in which the daemon would come to need what they look at."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import TextIO

from milo_discoveryd.check import places
from milo_discoveryd.check.api_server import ApiServerCheck, usable
from milo_discoveryd.check.credential_sources import check_sources
from milo_discoveryd.check.finding import Finding, fail, ok, warn
from milo_discoveryd.check.reviewing import reviewing
from milo_discoveryd.check.rules import rules
from milo_discoveryd.config import Settings, UnixAddress
from milo_discoveryd.credentials import Upstream, load_discovery_upstream, load_project_upstream
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.modes import mode as modes
from milo_discoveryd.modes.mode import Resource
from milo_discoveryd.watchers.transport import open_transport
from milo_discoveryd.wiring.credential_sources import Sources
from milo_discoveryd.wiring.listeners import token_reviews

_BOOKMARKS_EVERY_S = 60.2  # seen of kube-apiserver; Milo's is built from the same libraries


async def check(settings: Settings, out: TextIO, environ: Mapping[str, str] = os.environ) -> int:
    """Prints what it finds as it finds it. The exit status: 0 when nothing has failed."""
    failures = 0
    async with aclosing(_findings(settings, environ)) as findings:
        async for finding in findings:
            failures += finding.level == "fail"
            print(*finding.lines(), sep="\n", file=out, flush=True)
    print(f"{failures} failed" if failures else "all well", file=out, flush=True)
    return 1 if failures else 0


async def _findings(settings: Settings, environ: Mapping[str, str]) -> AsyncGenerator[Finding, None]:
    for finding in _settings(settings):
        yield finding
    for finding in rules(settings):
        yield finding
    async for finding in _upstreams(settings, environ):
        yield finding
    async for finding in _reviewing(settings, environ):
        yield finding
    for finding in _places(settings):
        yield finding


def _settings(settings: Settings) -> Iterator[Finding]:
    resource = _resource(settings)
    selected = f", label_selector {settings.label_selector}" if settings.label_selector else ""
    yield ok("settings", f"mode {settings.mode}{selected}")
    if resource is None and settings.label_selector:
        yield warn("settings", f"mode {settings.mode} watches nothing", "label_selector has no effect: drop it")
    silence = settings.source.silence_limit.total_seconds()
    if resource is not None and silence <= _BOOKMARKS_EVERY_S + 10:
        yield warn(
            "settings",
            f"source.silence_limit is {silence:g} s, and a healthy watch may be silent for {_BOOKMARKS_EVERY_S:g} s",
            "set it to 75s or more",
        )


async def _upstreams(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    resource = _resource(settings)
    discovery, project = settings.discovery_kubeconfig, settings.project_kubeconfig
    plugins = settings.exec_plugins
    problems: list[Finding] = []
    watched = None
    if resource is not None:
        watched = _load("discovery", lambda: load_discovery_upstream(discovery, environ, plugins), problems)
    leading = _load("project", lambda: load_project_upstream(project, discovery, environ, plugins), problems)
    for problem in problems:
        yield problem
    async with AsyncExitStack() as closing:
        sources = _sources(settings, leading, environ, closing)
        if isinstance(sources, Finding):
            yield sources
            return
        if watched is not None:
            followed = watched if sources is None else sources.authenticated(watched)
            async for finding in _server("discovery", followed, settings, resource):
                yield finding
        if leading is None or sources is None:
            return
        async for finding in _project(settings, watched, leading):
            yield finding
        assigned = [each.source for each in sources.assignments()]
        ttl_s = settings.kubeconfigs.default_ttl.total_seconds()
        for finding in await check_sources(assigned, ttl_s, is_configured=bool(settings.kubeconfigs.sources)):
            yield finding


async def _reviewing(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    async with AsyncExitStack() as closing:
        try:
            reviews = token_reviews(settings, environ, closing)
        except ConfigError as error:
            yield fail("token reviews", str(error), "mend it, or name another one: token_review.kubeconfig")
            return
        if reviews is not None:
            yield await reviewing(reviews)


def _sources(
    settings: Settings, leading: Upstream | None, environ: Mapping[str, str], closing: AsyncExitStack
) -> Sources | Finding | None:
    if leading is None:
        return None
    try:
        made = Sources(settings, leading, environ, closing)
        made.authenticated(leading)
    except ConfigError as error:
        return fail("kubeconfigs", str(error), "mend kubeconfigs.sources, or source.credentials, in the configuration")
    return made


async def _project(settings: Settings, watched: Upstream | None, leading: Upstream) -> AsyncIterator[Finding]:
    if watched is not None and leading.origin == watched.origin:
        yield ok("project", f"the same as discovery ({leading.origin})")
    elif settings.mode == "project-control-plane":
        # Its scheme, CA and identity are used, at addresses of their own; its server is never asked.
        yield await usable("project", leading)
    else:
        async for finding in _server("project", leading, settings, None):
            yield finding


async def _server(
    name: str, upstream: Upstream, settings: Settings, resource: Resource | None
) -> AsyncIterator[Finding]:
    timeout_s = settings.source.connect_timeout.total_seconds()
    async with aclosing(open_transport(upstream, connect_timeout_s=timeout_s)) as transport:
        checked = ApiServerCheck(name, upstream, transport)
        steps = checked.reachable() if resource is None else checked.watchable(resource, settings.label_selector)
        async for finding in steps:
            yield finding


def _load(name: str, load: Callable[[], Upstream], problems: list[Finding]) -> Upstream | None:
    """Adds to `problems` what is new in it: the two kubeconfigs may be one, and wrong in one way."""
    try:
        return load()
    except ConfigError as error:
        mend = f"mend it, or name another one: --{name}-kubeconfig FILE, or {name}_kubeconfig in the configuration"
        told = {problem.seen for problem in problems}
        problems += [fail(f"{name} kubeconfig", problem, mend) for problem in error.problems if problem not in told]
        return None


def _places(settings: Settings) -> Iterator[Finding]:
    sockets = {
        each.address: places.unix_socket(each.address)
        for each in settings.listen
        if isinstance(each.address, UnixAddress)
    }
    # Where somebody looks for what is wrong with a daemon that runs, its own places are no trouble.
    beside_a_daemon = any(finding.level == "warn" for finding in sockets.values())
    for each in settings.listen:
        address = each.address
        if isinstance(address, UnixAddress):
            yield sockets[address]
        else:
            yield places.tcp_port("listen", address, beside_a_daemon=beside_a_daemon)
        if each.tls is not None:
            yield places.certificate(f"listen {address}", each.tls)
        if each.group is not None:
            yield places.group(f"listen {address} group", each.group)
    if settings.socket.group is not None:
        yield places.group("socket.group", settings.socket.group)
    if settings.http_listen is not None:
        yield places.tcp_port("http_listen", settings.http_listen, beside_a_daemon=beside_a_daemon)


def _resource(settings: Settings) -> Resource | None:
    """What the mode watches; None of one that watches nothing."""
    return getattr(modes.load(settings.mode), "resource", None)
