"""What the rules grant to callers."""

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.rights import UNLIMITED, Grant, Rights, RightsRule, Terms
from milo_discoveryd.rights.scope import ALL_CLUSTERS, NO_CLUSTERS, ClusterScope
from milo_kube.label_selector import parse

PROD = ClusterScope(parse("env=prod"))


def rule(name: str, who: CallerSelector, scope: ClusterScope = ALL_CLUSTERS) -> RightsRule:
    return RightsRule(who, Grant(rule=name, scope=scope))


def test_rights_without_rules_grant_everything() -> None:
    assert Rights().grant_for(Caller(listener="api")) == Grant(
        rule="", scope=ALL_CLUSTERS, terms=UNLIMITED, streams=None
    )


def test_rights_with_rules_deny_unmatched_callers() -> None:
    rights = Rights((rule("root", CallerSelector(uids=frozenset({0}))),))
    assert rights.grant_for(Caller(listener="api", uid=0)) == Grant(rule="root")
    assert rights.grant_for(Caller(listener="api", uid=1)) is None


def test_only_the_first_matching_rule_applies() -> None:
    rights = Rights(
        (
            rule("not them", CallerSelector(uids=frozenset({7})), NO_CLUSTERS),
            rule("api", CallerSelector(listeners=frozenset({"api"})), PROD),
            rule("all", CallerSelector()),
        )
    )
    given = [
        rights.grant_for(caller)
        for caller in (Caller(listener="api", uid=7), Caller(listener="api"), Caller(listener="b"))
    ]
    assert [grant and (grant.rule, grant.scope) for grant in given] == [
        ("not them", NO_CLUSTERS),
        ("api", PROD),
        ("all", ALL_CLUSTERS),
    ]


def test_rule_terms_limit_credential_issuers_and_ttl() -> None:
    assert UNLIMITED.allow("any")
    assert UNLIMITED.ttl_s(600.0) == 600.0
    terms = Terms(issuers=frozenset({"viewer"}), max_ttl_s=300.0)
    assert terms.allow("viewer")
    assert not terms.allow("admin")
    assert (terms.ttl_s(600.0), terms.ttl_s(60.0)) == (300.0, 60.0)
