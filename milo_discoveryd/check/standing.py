"""What somebody would get, by the rules as they are configured: `check --as`."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import TextIO

from milo_discoveryd.check.rules import opening_all
from milo_discoveryd.config import Settings
from milo_discoveryd.credentials import Upstream, load_discovery_upstream, load_project_upstream
from milo_discoveryd.daemon_errors import ConfigError, TransportError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.model.observation import Ready
from milo_discoveryd.modes.mode import FixedMode, WatchedMode
from milo_discoveryd.reflect.wire import ListPageError
from milo_discoveryd.rights.rights import Grant
from milo_discoveryd.watchers.transport import open_transport
from milo_discoveryd.wiring.mode import decoder, mode_of
from milo_discoveryd.wiring.rules import rights

_NUMBERS = ("uid", "gid")
_TEXTS = ("listener", "user")
_LISTS = {"san": "sans", "group": "groups"}
_SHOWN = 10


def caller(text: str) -> Caller:
    """From `uid=1000,listener=api` and the like; of several groups the first is its own. Raises ConfigError."""
    fields: dict[str, object] = {"listener": ""}
    lists: dict[str, list[str]] = {name: [] for name in _LISTS.values()}
    gids: list[int] = []
    for word in filter(None, (each.strip() for each in text.split(","))):
        key, _, value = word.partition("=")
        if not value:
            raise _not_understood(word, "say what of the caller is known, and its value")
        if key in _LISTS:
            lists[_LISTS[key]].append(value)
        elif key == "gid" and "gid" in fields and value.isascii() and value.isdigit():
            gids.append(int(value))
        elif fields.get(key):
            raise _not_understood(word, f"{key} was said before")
        elif key in _TEXTS:
            fields[key] = value
        elif key in _NUMBERS and value.isascii() and value.isdigit():
            fields[key] = int(value)
        else:
            raise _not_understood(word, "its value is a number" if key in _NUMBERS else f"there is no {key!r}")
    known = {name: tuple(values) for name, values in lists.items()}
    return Caller(**fields, **known, gids=tuple(gids))  # type: ignore[arg-type]


def _not_understood(word: str, why: str) -> ConfigError:
    known = ", ".join((*_TEXTS, *_NUMBERS, *_LISTS))
    return ConfigError([f'--as: "{word}": {why}; an identity is some of {known}, such as "uid=1000,listener=api"'])


async def standing(settings: Settings, who: Caller, out: TextIO, environ: Mapping[str, str]) -> int:
    """Prints it. The exit status: 0 for somebody who may see anything, whether or not there is something to see."""
    grant = rights(settings.rights).of(who)
    for line in _in_words(settings, grant):
        print(line, file=out)
    if grant is None or grant.scope.is_empty:
        return 1
    print(f"clusters     {await _seen(settings, grant, environ)}", file=out)
    return 0


def _in_words(settings: Settings, grant: Grant | None) -> Iterator[str]:
    if grant is None:
        yield f"rule         none: there are {len(settings.rights)}, and none is for this caller, who is refused"
        return
    if not grant.rule:
        yield "rule         there are none, and everybody may everything"
    else:
        place = next(place for place, rule in enumerate(settings.rights, 1) if rule.name == grant.rule)
        yield f"rule         {grant.rule} (item {place} of {len(settings.rights)}), the first that is met"
    limits, terms = settings.limits, grant.terms
    yield f"sees         {grant.scope}"
    if terms is None:
        yield "kubeconfigs  none"
    else:
        ttl = terms.ttl_s(settings.kubeconfigs.max_ttl.total_seconds())
        sources = "any source" if terms.sources is None else f"source {' or '.join(sorted(terms.sources))}"
        each_minute = limits.kubeconfigs_per_minute if terms.per_minute is None else terms.per_minute
        yield f"kubeconfigs  from {sources}, asked for at most {ttl:g} s, {each_minute} a minute"
        if not grant.scope.is_everything and (wide := ", ".join(opening_all(settings, terms))):
            yield f"             what {wide} gives opens all clusters of its identity, not only those that are seen"
    yield f"streams      {limits.streams_per_caller if grant.streams is None else grant.streams} at once"


async def _seen(settings: Settings, grant: Grant, environ: Mapping[str, str]) -> str:
    try:
        discovery, plugins = settings.discovery_kubeconfig, settings.exec_plugins
        project = load_project_upstream(settings.project_kubeconfig, discovery, environ, plugins)
        mode = mode_of(settings, project)
        if isinstance(mode, FixedMode):
            return _count(list(mode.targets()), grant)
        upstream = load_discovery_upstream(discovery, environ, plugins)
        return _count([target async for target in _engaged(settings, mode, upstream, environ)], grant)
    except (ConfigError, TransportError, ListPageError) as error:
        return f"not known: {error}"


def _count(targets: Iterable[Target], grant: Grant) -> str:
    targets = list(targets)
    seen = sorted(target.name for target in targets if _is_seen(target, grant))
    more = f" and {len(seen) - _SHOWN} more" if len(seen) > _SHOWN else ""
    names = f": {', '.join(seen[:_SHOWN])}{more}" if seen else ""
    return f"{len(seen)} of {len(targets)} that are ready now{names}"


async def _engaged(
    settings: Settings, mode: WatchedMode, upstream: Upstream, environ: Mapping[str, str]
) -> AsyncIterator[Target]:
    """All that a list holds and the daemon would engage."""
    source, read = settings.source, decoder(settings, mode)
    selected = [("labelSelector", settings.label_selector)] if settings.label_selector else []
    timeout_s = source.request_timeout.total_seconds()
    transport = open_transport(upstream, response_limit=source.response_limit, environ=environ)
    async with aclosing(transport):
        token = ""
        while True:
            query = [*selected, ("limit", str(source.page_size)), *([("continue", token)] if token else [])]
            answer = await transport.get(mode.resource.path, query, timeout_s=timeout_s)
            if answer.status != 200:
                raise ListPageError(f"the API server answered the list with {answer.status}")
            page, observations = read.page(answer.body)
            for each in observations:
                if isinstance(each, Ready):
                    yield each.target
            token = page.continue_token
            if not token:
                return


def _is_seen(target: Target, grant: Grant) -> bool:
    return grant.scope.covers(target)
