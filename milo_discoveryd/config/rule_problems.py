"""Why authorization rules cannot take effect: they name what is not configured, or what does not run yet."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from milo_discoveryd.config import layers
from milo_discoveryd.config.listeners import ListenerSettings
from milo_discoveryd.config.rights import RuleSettings
from milo_discoveryd.config.settings import Settings
from milo_discoveryd.credentials.issuers.settings import IssuerSettings
from milo_discoveryd.model.cluster import SOURCE_SEPARATOR, key_of
from milo_discoveryd.rights.name_patterns import name_patterns

REQUIRED_SETTINGS: Mapping[str, str] = {
    "uid": "peer_credentials",
    "gid": "peer_credentials",
    "san": "tls",
    "user": "tokens",
    "group": "tokens",
}
"""The setting of a listener that a condition of a rule requires."""


class _RunningNames(msgspec.Struct, frozen=True):
    """The names in one setting of a rule, and the configured items that they can name."""

    setting: str
    named: Iterable[str]
    items: dict[str, object]
    kind: str


class RuleProblem(msgspec.Struct, frozen=True):
    """Why a rule cannot take effect."""

    place: str
    """The value's place in `rights`, such as `[0].who.listener`."""
    text: str


def disagreements(settings: Settings) -> Iterator[RuleProblem]:
    """Yield what contradicts the settings of listeners, sources and issuers."""
    yield from _unknown_names(settings)
    yield from _too_short_for_tokens(settings)


def not_running(file: Settings, running: Settings) -> Iterator[RuleProblem]:
    """Yield what prevents the rules of a file from taking effect before the settings that the file has beside them.

    A rule that differs from those in force may only name what runs with the settings that the file has for it: under
    the same name, the file may have configured something else.
    """
    yield from disagreements(msgspec.structs.replace(running, rights=file.rights))
    for number, rule in enumerate(file.rights):
        if rule in running.rights:
            continue
        for wanted, found in zip(_names(file, rule), _names(running, rule), strict=True):
            for name in wanted.named:
                if name in found.items and found.items[name] != wanted.items[name]:
                    text = f"{layers.quoted(name)} runs with settings that differ from those in the file"
                    yield RuleProblem(f"[{number}].{wanted.setting}", text)
        for condition, needed in REQUIRED_SETTINGS.items():
            if getattr(rule.who, condition) and can_match(file, rule, needed) and not can_match(running, rule, needed):
                yield RuleProblem(f"[{number}].who.{condition}", f"no running listener has `{needed}`")


def listeners_of(settings: Settings, rule: RuleSettings) -> list[ListenerSettings]:
    """Return the listeners at which a rule applies."""
    return [listener for listener in settings.listen if not rule.who.listener or listener.title in rule.who.listener]


def can_match(settings: Settings, rule: RuleSettings, needed: str) -> bool:
    """Return whether a listener at which the rule applies has the setting that a condition of the rule requires."""
    return any(getattr(listener, needed) for listener in listeners_of(settings, rule))


def _unknown_names(settings: Settings) -> Iterator[RuleProblem]:
    sources = [source.name for source in settings.sources if source.name]
    for number, rule in enumerate(settings.rights):
        for names in _names(settings, rule):
            for name in names.named:
                if name not in names.items:
                    configured = ", ".join(names.items) or "none"
                    text = f"{layers.quoted(name)} is not {names.kind}; configured: {configured}"
                    yield RuleProblem(f"[{number}].{names.setting}", text)
        for name in rule.clusters.names if rule.clusters else ():
            if complaint := _why_no_cluster_matches(name, sources):
                text = f"{layers.quoted(name)} matches no cluster: {complaint}"
                yield RuleProblem(f"[{number}].clusters.names", text)


def _too_short_for_tokens(settings: Settings) -> Iterator[RuleProblem]:
    for issuer in settings.kubeconfigs.issuers:
        if not issuer.min_ttl_s or not issuer.hand_out:
            continue
        for number, rule in enumerate(settings.rights):
            is_allowed = rule.kubeconfigs and (not rule.issuers or issuer.name in rule.issuers)
            if is_allowed and rule.max_ttl is not None and rule.max_ttl.total_seconds() < issuer.min_ttl_s:
                yield RuleProblem(f"[{number}].max_ttl", too_short(issuer))


def too_short(issuer: IssuerSettings) -> str:
    return f"is shorter than {issuer.min_ttl_s} s, the shortest lifetime that {issuer.name} ({issuer.type}) can issue"


def _names(settings: Settings, rule: RuleSettings) -> tuple[_RunningNames, ...]:
    clusters = rule.clusters
    sources = {source.name: source for source in settings.sources if source.name}
    prefixes = {name.partition(SOURCE_SEPARATOR)[0] for name in clusters.names} if clusters else set()
    return (
        _RunningNames(
            "who.listener",
            rule.who.listener,
            {listener.title: listener for listener in settings.listen},
            "the name of an item of listen",
        ),
        _RunningNames(
            "clusters.sources",
            dict.fromkeys((*clusters.sources, *sorted(prefixes & sources.keys()))) if clusters else (),
            {**sources},
            "the name of a source",
        ),
        _RunningNames(
            "issuers",
            rule.issuers,
            {issuer.name: issuer for issuer in settings.kubeconfigs.issuers if issuer.hand_out},
            "the name of an item of kubeconfigs.issuers without `hand_out: false`",
        ),
    )


def _why_no_cluster_matches(name: str, sources: Sequence[str]) -> str:
    """Return why a name or a pattern of a rule matches no cluster of any source; empty if it may match one."""
    if not sources:
        if SOURCE_SEPARATOR in name:
            return f"names contain {SOURCE_SEPARATOR} only if sources have names"
        return ""
    names = name_patterns([name])
    if any(names.may_match_source(source) for source in sources):
        return ""
    return f"it must begin with {' or '.join(key_of('', source) for source in (*sources, '*'))}"
