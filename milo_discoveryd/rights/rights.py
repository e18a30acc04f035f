"""Authorization rules, and what they grant a caller.

Only the first rule that matches a caller applies. A later rule therefore cannot extend an earlier one, exceptions must
precede the general rule, and limits of several rules are never added up.
"""

import msgspec

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.scope import ALL_CLUSTERS, ClusterScope
from milo_kube.act_as import ActAs


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions and limits of the kubeconfigs that a caller receives."""

    issuers: frozenset[str] | None = None
    """Names of the credential issuers that may serve the caller. None: all issuers."""
    act_as: ActAs | None = None
    """The user that the caller acts as. None: the identity of the issuer."""
    max_ttl_s: float | None = None
    per_minute: int | None = None

    def allow(self, issuer: str) -> bool:
        return self.issuers is None or issuer in self.issuers

    def ttl_s(self, wanted: float) -> float:
        return wanted if self.max_ttl_s is None else min(wanted, self.max_ttl_s)


UNLIMITED = Terms()


class Recipient(msgspec.Struct, frozen=True):
    """A caller that may have kubeconfigs, with the rule and the terms that permit it."""

    caller: Caller
    rule: str = ""
    terms: Terms = UNLIMITED


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """The rights of one caller."""

    rule: str = ""
    """The name of the rule that grants these rights; empty if no rules are configured."""
    scope: ClusterScope = ALL_CLUSTERS
    terms: Terms | None = UNLIMITED
    """The terms of the caller's kubeconfigs; None if the caller may not have kubeconfigs."""
    streams: int | None = None
    """Maximum open streams of the caller. None: the daemon's default."""


class RightsRule(msgspec.Struct, frozen=True):
    who: CallerSelector
    grant: Grant


class Rights(msgspec.Struct, frozen=True):
    """The authorization rules in force, in order."""

    rules: tuple[RightsRule, ...] = ()

    def grant_for(self, caller: Caller) -> Grant | None:
        """Return the rights of the caller, or None if there are rules and none of them matches the caller."""
        if not self.rules:
            return _TCP_WITHOUT_RULES if caller.over_tcp else _WITHOUT_RULES
        return next((rule.grant for rule in self.rules if rule.who.matches(caller)), None)


_WITHOUT_RULES = Grant()
_TCP_WITHOUT_RULES = Grant(terms=None)
"""The grant on a TCP listener without rules: kubeconfigs are issued only to callers that a rule allows to have them."""
