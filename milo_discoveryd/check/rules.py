"""Whether the rules can be met, and give what they seem to."""

from collections.abc import Iterator

from milo_discoveryd.check.finding import Finding, ok, warn
from milo_discoveryd.config import Rule, Settings
from milo_discoveryd.config.sources import DatumServiceAccount, Exec, TokenFile, TokenRequest
from milo_discoveryd.rights.rights import Terms
from milo_discoveryd.wiring.rules import rights

_KNOWN_WITH = {"uid": "peer_credentials", "gid": "peer_credentials", "san": "tls", "user": "tokens", "group": "tokens"}


def rules(settings: Settings) -> Iterator[Finding]:
    if not settings.rights:
        return
    problems = [problem for rule in settings.rights for problem in _never_met(settings, rule)]
    yield from problems
    for rule in rights(settings.rights).rules:
        grant = rule.grant
        if grant.terms is None or grant.scope.is_everything or grant.scope.is_empty:
            continue
        if wide := ", ".join(opening_all(settings, grant.terms)):
            seen = f"rule {grant.rule} covers some clusters, and what {wide} gives opens all of its identity"
            yield warn("rights", seen, "name sources in the rule whose identity may do no more than it covers")
    if not problems:
        names = ", ".join(rule.name for rule in settings.rights)
        yield ok("rights", f"{names}; all others may do nothing; check --as tells what somebody would get")


def opening_all(settings: Settings, terms: Terms) -> Iterator[str]:
    """The sources that have one credential for every cluster, of those that there may be something from."""
    configured = settings.kubeconfigs.sources
    if not configured:
        yield "the project kubeconfig's user"
    for each in configured:
        match each:
            case DatumServiceAccount() | TokenFile():
                is_wide = True
            case Exec():
                is_wide = not each.per_cluster
            case TokenRequest():
                is_wide = not each.bound
            case _:
                is_wide = False
        if each.hand_out and is_wide and terms.allow(each.name):
            yield each.name


def _never_met(settings: Settings, rule: Rule) -> Iterator[Finding]:
    listeners = [each for each in settings.listen if not rule.who.listener or each.title in rule.who.listener]
    for setting, needed in _KNOWN_WITH.items():
        if getattr(rule.who, setting) and not any(getattr(each, needed) for each in listeners):
            titles = ", ".join(each.title for each in listeners)
            yield warn(
                "rights",
                f"rule {rule.name} asks for a {setting}, which no caller at {titles} has: nobody ever meets it",
                f"give one of these listeners {needed}, or go by something else",
            )
