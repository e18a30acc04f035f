"""The rules, and what they give to whom.

The first rule that a caller meets is the one that counts, alone. So a rule further down can't widen what one above it
gives, an exception stands above what it is an exception from, and limits never have to be added up.
"""

import msgspec

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.rights.caller_selector import CallerSelector
from milo_discoveryd.rights.scope import ALL_CLUSTERS, ClusterScope


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """On which somebody is given kubeconfigs."""

    sources: frozenset[str] | None = None
    """Of credentials, by name; None: any."""
    max_ttl_s: float | None = None
    per_minute: int | None = None
    """How many."""

    def allow(self, source: str) -> bool:
        return self.sources is None or source in self.sources

    def ttl_s(self, wanted: float) -> float:
        return wanted if self.max_ttl_s is None else min(wanted, self.max_ttl_s)


UNLIMITED = Terms()


class Recipient(msgspec.Struct, frozen=True):
    """Who is given kubeconfigs, and why."""

    caller: Caller
    rule: str = ""
    terms: Terms = UNLIMITED


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody may do."""

    rule: str = ""
    """By which; empty while there are none."""
    scope: ClusterScope = ALL_CLUSTERS
    terms: Terms | None = UNLIMITED
    """None: no kubeconfigs."""
    streams: int | None = None
    """How many at once."""


class Rule(msgspec.Struct, frozen=True):
    who: CallerSelector
    grant: Grant


class Rights(msgspec.Struct, frozen=True):
    rules: tuple[Rule, ...] = ()

    def of(self, caller: Caller) -> Grant | None:
        """None: there are rules, and none is for this caller."""
        if not self.rules:
            return _BEFORE_ANY_RULE
        return next((rule.grant for rule in self.rules if rule.who.matches(caller)), None)


_BEFORE_ANY_RULE = Grant()
