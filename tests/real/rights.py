"""What the daemon may do on a real server: the shipped role, whole or with a verb less, bound to somebody or not."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.real.servers import RealApi
from tests.scenarios.steps import Mode

_ROLES_SHIPPED = Path(__file__).parents[2] / "deploy" / "base" / "rbac"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_ROLES = f"{_RBAC}/clusterroles"
_BINDINGS = f"{_RBAC}/clusterrolebindings"
_BINDING = "milo-discoveryd"

Subject = Mapping[str, str]


def user(name: str) -> Subject:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}


def service_account(namespace: str, name: str) -> Subject:
    return {"kind": "ServiceAccount", "namespace": namespace, "name": name}


def shipped_role(mode: Mode) -> dict[str, Any]:
    role: dict[str, Any] = yaml.safe_load((_ROLES_SHIPPED / mode / "cluster-role.yaml").read_text())
    return role


class Rights:
    """Of one subject on one server, and of it alone."""

    def __init__(self, server: RealApi, subject: Subject) -> None:
        self._server = server
        self._subject = subject

    async def give(self, role: Mapping[str, Any], *, without: Collection[str] = ()) -> None:
        """This role and no other; the verbs in `without` are left out."""
        await self.withdraw()
        rules = [{**rule, "verbs": [verb for verb in rule["verbs"] if verb not in without]} for rule in role["rules"]]
        name = role["metadata"]["name"]
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": _BINDING},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [dict(self._subject)],
        }
        async with self._server.api() as api:
            await api.forget(f"{_ROLES}/{name}")
            await api.call("POST", _ROLES, {**role, "rules": rules})
            await api.call("POST", _BINDINGS, binding)

    async def withdraw(self) -> None:
        async with self._server.api() as api:
            await api.forget(f"{_BINDINGS}/{_BINDING}")
