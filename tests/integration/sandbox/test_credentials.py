"""Tokens that expire, and the permissions of their users."""

import pytest

from milo_sandbox import Rule
from milo_sandbox.refusals import RefusalError
from milo_sandbox.rights import ADMIN, Action, SubjectRights
from milo_sandbox.tokens import Tokens

LIST = Action(verb="list", group="resourcemanager.miloapis.com", resource="projects")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_token_identifies_user_until_expiry() -> None:
    clock = Clock()
    tokens = Tokens(life=600, clock=clock)
    token = tokens.issue("somebody")
    clock.now += 599
    assert tokens.subject(token) == "somebody"
    clock.now += 1
    with pytest.raises(RefusalError, match="Unauthorized"):
        tokens.subject(token)


@pytest.mark.parametrize(
    "spoil", [lambda t: t[:-1], lambda t: "x" + t, lambda t: "", lambda t: "ü.ü.ü", lambda t: ".."]
)
def test_modified_token_is_rejected(spoil: object) -> None:
    tokens = Tokens(life=600, clock=Clock())
    assert callable(spoil)
    with pytest.raises(RefusalError):
        tokens.subject(spoil(tokens.issue("somebody")))


def test_tokens_of_another_issuer_and_revoked_tokens_are_rejected() -> None:
    tokens = Tokens(life=600, clock=Clock())
    with pytest.raises(RefusalError):
        tokens.subject(Tokens(life=600, clock=Clock()).issue("somebody"))
    token = tokens.issue("somebody")
    tokens.revoke_all()
    with pytest.raises(RefusalError):
        tokens.subject(token)


def test_admin_is_allowed_and_unknown_user_is_forbidden() -> None:
    rights = SubjectRights()
    rights.demand(ADMIN, LIST)
    with pytest.raises(RefusalError) as error:
        rights.demand("stranger", LIST)
    assert error.value.code == 403
    assert error.value.message == (
        'projects.resourcemanager.miloapis.com is forbidden: User "stranger" cannot list resource "projects" '
        'in API group "resourcemanager.miloapis.com" at the cluster scope'
    )


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (Rule(verbs=frozenset({"list", "watch"})), True),
        (Rule(verbs=frozenset({"watch"})), False),
        (Rule(verbs=frozenset({"*"}), resources=frozenset({"projects"})), True),
        (Rule(verbs=frozenset({"*"}), resources=frozenset({"projects/status"})), False),
        (Rule(verbs=frozenset({"*"}), groups=frozenset({"infrastructure.miloapis.com"})), False),
        (Rule(verbs=frozenset({"*"}), names=frozenset({"alpha"})), False),
    ],
)
def test_rbac_rule_allows_only_its_verbs_groups_resources_and_names(rule: Rule, allowed: bool) -> None:
    rights = SubjectRights()
    rights.grant("reader", [rule])
    assert rights.allows("reader", LIST) is allowed


def test_forbidden_response_contains_subresource_object_name_and_namespace() -> None:
    action = Action(verb="patch", group="", resource="configmaps", subresource="status", name="one", namespace="work")
    with pytest.raises(RefusalError) as error:
        SubjectRights().demand("reader", action)
    assert error.value.message == (
        'configmaps "one" is forbidden: User "reader" cannot patch resource "configmaps/status" '
        'in API group "" in the namespace "work"'
    )
