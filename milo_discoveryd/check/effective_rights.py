"""Prints the access that the configured rules grant a caller: `check --as`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

from milo_discoveryd.check.evaluation import evaluate_source
from milo_discoveryd.check.rules import issuers_for_all_clusters
from milo_discoveryd.config import Settings
from milo_discoveryd.credentials.kubeconfig_files import FilesError
from milo_discoveryd.daemon_errors import ConfigError
from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.rights.rights import Grant
from milo_discoveryd.wiring.configured_source import ConfiguredSource
from milo_discoveryd.wiring.rules import rights
from milo_kube.http.errors import TransportError
from milo_kube.reflect.wire import ListPageError

_NUMBERS = ("uid", "gid")
_TEXTS = ("listener", "user")
_LISTS = {"san": "sans", "group": "groups"}
_SHOWN = 10


def parse_caller(text: str) -> Caller:
    """Parse `uid=1000,listener=api`. The first gid is that of the primary group. Raises ConfigError."""
    fields: dict[str, object] = {"listener": ""}
    lists: dict[str, list[str]] = {name: [] for name in _LISTS.values()}
    gids: list[int] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = word.partition("=")
        if not value:
            raise _invalid(word, "expected KEY=VALUE")
        if key in _LISTS:
            lists[_LISTS[key]].append(value)
        elif key == "gid" and "gid" in fields and value.isascii() and value.isdigit():
            gids.append(int(value))
        elif fields.get(key):
            raise _invalid(word, f"{key} is repeated")
        elif key in _TEXTS:
            fields[key] = value
        elif key in _NUMBERS and value.isascii() and value.isdigit():
            fields[key] = int(value)
        else:
            raise _invalid(word, "the value must be a number" if key in _NUMBERS else f"unknown key {key!r}")
    known = {name: tuple(values) for name, values in lists.items()}
    return Caller(**fields, **known, gids=tuple(gids))  # type: ignore[arg-type]


def _invalid(word: str, why: str) -> ConfigError:
    known = ", ".join((*_TEXTS, *_NUMBERS, *_LISTS))
    return ConfigError([f'--as: "{word}": {why}; valid keys are {known}; for example "uid=1000,listener=api"'])


async def print_effective_rights(settings: Settings, caller: Caller, out: TextIO, environ: Mapping[str, str]) -> int:
    """Print the access of `caller`, and return the exit status: 1 if its calls are denied, otherwise 0."""
    grant = rights(settings.rights).grant_for(caller)
    for line in _lines(settings, grant):
        print(line, file=out)
    if grant is None or grant.scope.is_empty:
        return 1
    print(f"clusters     {await _visible_clusters(settings, grant, environ)}", file=out)
    return 0


def _lines(settings: Settings, grant: Grant | None) -> Iterator[str]:
    if grant is None:
        rules = f"none of the {len(settings.rights)} authorization rules matches this caller"
        yield f"rule         {rules}: its calls are denied"
        return
    if not grant.rule:
        yield "rule         no rules are configured: every caller sees all clusters"
    else:
        place = next(place for place, rule in enumerate(settings.rights, 1) if rule.name == grant.rule)
        yield f"rule         {grant.rule} (item {place} of {len(settings.rights)}), the first that matches"
    limits, terms = settings.limits, grant.terms
    yield f"sees         {grant.scope}"
    if terms is None:
        yield "kubeconfigs  none"
    else:
        ttl = terms.ttl_s(settings.kubeconfigs.max_ttl.total_seconds())
        issuers = "any issuer" if terms.issuers is None else f"issuer {' or '.join(sorted(terms.issuers))}"
        each_minute = limits.kubeconfigs_per_minute if terms.per_minute is None else terms.per_minute
        acting = "" if terms.act_as is None else f", acting as {terms.act_as.user}"
        yield f"kubeconfigs  from {issuers}{acting}, for at most {ttl:g} s, {each_minute} per minute"
        if not grant.scope.is_everything and (wide := ", ".join(issuers_for_all_clusters(settings, terms))):
            validity = "valid for all clusters that their identity can access, even if the caller cannot see them"
            yield f"             credentials of {wide} are {validity}"
    yield f"streams      {limits.streams_per_caller if grant.streams is None else grant.streams} concurrent"


async def _visible_clusters(settings: Settings, grant: Grant, environ: Mapping[str, str]) -> str:
    try:
        sources = [ConfiguredSource(source, settings, environ) for source in settings.sources]
        found = [await evaluate_source(source, source.discovery, settings, environ) for source in sources]
    except (ConfigError, FilesError, TransportError, ListPageError) as error:
        return f"unknown: {error}"
    return _count([cluster.target for evaluated in found for cluster in evaluated.clusters], grant)


def _count(targets: Sequence[Target], grant: Grant) -> str:
    visible = sorted(target.name for target in targets if grant.scope.covers(target))
    more = f" and {len(visible) - _SHOWN} more" if len(visible) > _SHOWN else ""
    names = f": {', '.join(visible[:_SHOWN])}{more}" if visible else ""
    return f"{len(visible)} of {len(targets)} ready clusters{names}"
