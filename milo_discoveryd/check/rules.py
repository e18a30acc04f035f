"""Checks that authorization rules can match, and that the credentials they permit are not valid for more clusters than
the rule covers."""

from collections.abc import Iterator

from milo_discoveryd.check.finding import Finding, ok, warn
from milo_discoveryd.config import RuleSettings, Settings
from milo_discoveryd.config.rule_problems import REQUIRED_SETTINGS, can_match, listeners_of
from milo_discoveryd.rights.rights import Terms
from milo_discoveryd.wiring.rules import rights


def check_rules(settings: Settings) -> Iterator[Finding]:
    if not settings.rights:
        return
    problems = [problem for rule in settings.rights for problem in _never_matching(settings, rule)]
    yield from problems
    for rule in rights(settings.rights).rules:
        grant = rule.grant
        if grant.terms is None or grant.scope.is_everything or grant.scope.is_empty:
            continue
        if wide := ", ".join(issuers_for_all_clusters(settings, grant.terms)):
            message = f"rule {grant.rule} covers some clusters, but credentials of {wide} are valid for more"
            yield warn(
                "rights",
                message,
                "in the rule, list only issuers whose identity has no more access than the rule grants",
            )
    if not problems:
        names = ", ".join(rule.name for rule in settings.rights)
        yield ok("rights", f"{names}; other callers are denied; `check --as` prints the access of an identity")


def issuers_for_all_clusters(settings: Settings, terms: Terms) -> Iterator[str]:
    """Yield the names of permitted issuers whose credentials are valid for all clusters."""
    for issuer in settings.kubeconfigs.issuers:
        if issuer.hand_out and not issuer.is_per_cluster and terms.allow(issuer.name):
            yield issuer.name


def _never_matching(settings: Settings, rule: RuleSettings) -> Iterator[Finding]:
    for condition, needed in REQUIRED_SETTINGS.items():
        if getattr(rule.who, condition) and not can_match(settings, rule, needed):
            titles = ", ".join(listener.title for listener in listeners_of(settings, rule))
            yield warn(
                "rights",
                f"rule {rule.name} never matches: it requires {condition}, which callers at {titles} never have",
                f"configure {needed} on one of these listeners, or match by another field",
            )
