"""Builds authorization rules from settings."""

from collections.abc import Iterable

from milo_discoveryd.config import RuleSettings
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.name_patterns import name_patterns
from milo_discoveryd.rights.rights import Grant, Rights, RightsRule, Terms
from milo_discoveryd.rights.scope import NO_CLUSTERS, ClusterScope
from milo_kube.act_as import ActAs
from milo_kube.label_selector import parse as parse_selector


def rights(rules: Iterable[RuleSettings]) -> Rights:
    return Rights(tuple(RightsRule(_who(rule), _grant(rule)) for rule in rules))


def _who(rule: RuleSettings) -> CallerSelector:
    who = rule.who
    return CallerSelector(
        listeners=frozenset(who.listener),
        uids=frozenset(who.uid),
        gids=frozenset(who.gid),
        sans=who.san,
        users=frozenset(who.user),
        groups=frozenset(who.group),
    )


def _grant(rule: RuleSettings) -> Grant:
    return Grant(
        rule=rule.name,
        scope=_scope(rule),
        terms=_terms(rule) if rule.kubeconfigs else None,
        streams=rule.streams,
    )


def _scope(rule: RuleSettings) -> ClusterScope:
    clusters = rule.clusters
    if clusters is None:
        return NO_CLUSTERS
    return ClusterScope(
        parse_selector(clusters.label_selector),
        frozenset(clusters.organizations),
        name_patterns(clusters.names),
        frozenset(clusters.sources),
    )


def _terms(rule: RuleSettings) -> Terms:
    return Terms(
        issuers=frozenset(rule.issuers) or None,
        act_as=None if rule.as_ is None else ActAs(user=rule.as_.user, groups=rule.as_.groups, extra=rule.as_.extra),
        max_ttl_s=None if rule.max_ttl is None else rule.max_ttl.total_seconds(),
        per_minute=rule.kubeconfigs_per_minute,
    )
