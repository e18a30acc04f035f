"""RBAC of the daemon on a real server: the shipped role, complete or without one verb, bound or not."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.scenarios.steps import Mode

_ROLES_SHIPPED = Path(__file__).parents[3] / "deploy" / "base" / "rbac"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_OURS = {"real-test": "rights"}


class _RolePaths(NamedTuple):
    """The API paths of a kind of role and of its bindings."""

    roles: str
    bindings: str


_ROLE_PATHS = {
    "ClusterRole": _RolePaths(f"{_RBAC}/clusterroles", f"{_RBAC}/clusterrolebindings"),
    "Role": _RolePaths(f"{_RBAC}/namespaces/default/roles", f"{_RBAC}/namespaces/default/rolebindings"),
}

Subject = Mapping[str, str]


def user(name: str) -> Subject:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}


def service_account(namespace: str, name: str) -> Subject:
    return {"kind": "ServiceAccount", "namespace": namespace, "name": name}


def shipped_role(mode: Mode) -> dict[str, Any]:
    return _shipped(mode, "cluster-role.yaml")


def shipped_role_of_tokens() -> dict[str, Any]:
    """Return the additional rights for a credential issuer of type `token-request`."""
    return _shipped("token-request", "role.yaml")


def shipped_bound_tokens() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the namespace of bound tokens, with its admission policy and binding."""
    directory = _ROLES_SHIPPED / "token-request"
    policy, binding = yaml.safe_load_all((directory / "admission-policy.yaml").read_text())
    return yaml.safe_load((directory / "namespace.yaml").read_text()), policy, binding


def shipped_role_of_secrets() -> dict[str, Any]:
    """Return the rights for a credential issuer of type `kubeconfig-secret`."""
    return _shipped("kubeconfig-secret", "cluster-role.yaml")


def shipped_role_of_reviews() -> dict[str, Any]:
    """Return the rights for a listener that accepts bearer tokens."""
    return _shipped("token-review", "cluster-role.yaml")


def withheld(role: Mapping[str, Any], resource: str, verb: str) -> dict[str, Any]:
    """Return the role without a verb for a resource."""
    rules = [
        {
            **rule,
            "verbs": [allowed for allowed in rule["verbs"] if not (allowed == verb and resource in rule["resources"])],
        }
        for rule in role["rules"]
    ]
    return {**role, "rules": [rule for rule in rules if rule["verbs"]]}


def _shipped(directory: str, file: str) -> dict[str, Any]:
    role: dict[str, Any] = yaml.safe_load((_ROLES_SHIPPED / directory / file).read_text())
    role["metadata"].pop("namespace", None)  # the tests use another namespace
    return role


class Rights:
    """The rights that tests give on one server, to one subject at a time."""

    def __init__(self, server: RealApi, subject: Subject) -> None:
        self._server = server
        self._subject = subject

    async def give(self, *roles: Mapping[str, Any], without: Collection[str] = ()) -> None:
        """Give these roles to the subject, without the verbs in `without`, after all earlier ones were withdrawn."""
        await self.withdraw()
        async with self._server.api() as api:
            for role in roles:
                rules = [
                    {**rule, "verbs": [verb for verb in rule["verbs"] if verb not in without]} for rule in role["rules"]
                ]
                place, name = _ROLE_PATHS[role["kind"]], role["metadata"]["name"]
                binding = {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": f"{role['kind']}Binding",
                    "metadata": {"name": name, "labels": _OURS},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role["kind"], "name": name},
                    "subjects": [dict(self._subject)],
                }
                await api.forget(f"{place.roles}/{name}")
                await api.call("POST", place.roles, {**role, "rules": rules})
                await api.call("POST", place.bindings, binding)

    async def withdraw(self) -> None:
        selector = ",".join(f"{key}={value}" for key, value in _OURS.items())
        async with self._server.api() as api:
            for place in _ROLE_PATHS.values():
                await api.call("DELETE", f"{place.bindings}?labelSelector={selector}")
