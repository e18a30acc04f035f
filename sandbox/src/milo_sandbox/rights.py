"""Authorization rules per subject, as in Kubernetes RBAC."""

from collections.abc import Iterable

import msgspec

from milo_sandbox import refusals

ADMIN = "sandbox-admin"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Verbs on resources ("projects", "projects/status"); "*" matches all, and an empty set of names matches all."""

    verbs: frozenset[str]
    resources: frozenset[str] = frozenset({"*"})
    groups: frozenset[str] = frozenset({"*"})
    names: frozenset[str] = frozenset()


EVERYTHING = Rule(verbs=frozenset({"*"}))


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """An action to authorize."""

    verb: str
    group: str
    resource: str
    subresource: str = ""
    name: str = ""
    namespace: str = ""

    @property
    def what(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class SubjectRights:
    """The rules of all subjects. The administrator may do everything, and a subject without rules nothing."""

    def __init__(self) -> None:
        self._rules: dict[str, tuple[Rule, ...]] = {ADMIN: (EVERYTHING,)}

    def grant(self, subject: str, rules: Iterable[Rule]) -> None:
        """Replace the rules of a subject."""
        self._rules[subject] = tuple(rules)

    def rules(self, subject: str) -> tuple[Rule, ...]:
        return self._rules.get(subject, ())

    def allows(self, subject: str, action: Action) -> bool:
        return any(_covers(rule, action) for rule in self.rules(subject))

    def demand(self, subject: str, action: Action) -> None:
        if not self.allows(subject, action):
            raise _denied(subject, action)


def _covers(rule: Rule, action: Action) -> bool:
    return (
        not rule.verbs.isdisjoint({"*", action.verb})
        and not rule.groups.isdisjoint({"*", action.group})
        and not rule.resources.isdisjoint({"*", action.what})
        and (not rule.names or action.name in rule.names)
    )


def _denied(subject: str, action: Action) -> refusals.RefusalError:
    resource = f"{action.resource}.{action.group}" if action.group else action.resource
    named = f'{resource} "{action.name}"' if action.name else resource
    where = f'in the namespace "{action.namespace}"' if action.namespace else "at the cluster scope"
    return refusals.forbidden(
        named,
        f'User "{subject}" cannot {action.verb} resource "{action.what}" in API group "{action.group}" {where}',
        details={"name": action.name, "group": action.group, "kind": action.resource},
    )
