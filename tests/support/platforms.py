"""Gardener and kcp as sources of clusters: Shoots, whose kubeconfigs are requested, and workspaces, each with a path.

Only the requests that clients of such clusters send are served, with the resources' real names and fields.
"""

from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import yaml
from aiohttp import web

from milo_sandbox import Sandbox, answers, kubeconfigs, refusals
from milo_sandbox.admission import Part
from milo_sandbox.api import Api
from milo_sandbox.resources import CONTROL_PLANE, NAMESPACES, SECRETS, Document, ResourceDefinition, resource_of
from milo_sandbox.rights import EVERYTHING, Action
from milo_sandbox.store import Store

GARDEN = "garden"
"""The path prefix of Gardener's API server."""
CLUSTERS = "clusters"
"""The path prefix of kcp's workspaces."""
PARENT = "root:sandbox"
"""The parent workspace, which contains the others."""
SHOOT_ADMIN = "gardener.cloud:admin"
_LEAST_S, _MOST_S = 600, 24 * 3600

_DEFINITIONS = Path(__file__).with_name("crds")
SHOOTS, WORKSPACES = (
    resource_of(yaml.safe_load((_DEFINITIONS / f"{plural}.yaml").read_text())) for plural in ("shoots", "workspaces")
)


class Garden:
    """Gardener's API server. The API server of a Shoot is the control plane of the project with the same name."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.api = sandbox.new_api(NAMESPACES, SECRETS, SHOOTS)
        self.sandbox = sandbox
        self.requested = 0
        """The number of kubeconfigs issued."""
        sandbox.rights.grant(SHOOT_ADMIN, [EVERYTHING])
        sandbox.mount(GARDEN, self)

    def kubeconfig(self, *, token: str | None = None) -> Document:
        """Return a kubeconfig for Gardener's API server, with an embedded token."""
        return self.sandbox.mounted_kubeconfig(GARDEN, token=token)

    def create(self, namespace: str, name: str, *, is_available: bool = True) -> None:
        """Create a Shoot whose API server is the control plane of the project with the same name."""
        if self.api.store[NAMESPACES].get(namespace) is None:
            self.api.store.create(NAMESPACES, {"metadata": {"name": namespace}})
        condition = {"type": "APIServerAvailable", "status": "True" if is_available else "False"}
        addresses = [
            {"name": "internal", "url": "https://api.internal.invalid"},
            {"name": "external", "url": self.sandbox.control_plane_url(name)},
        ]
        self.api.store.create(
            SHOOTS, {"metadata": {"name": name}, "spec": {"purpose": "evaluation"}}, namespace=namespace
        )
        status = {"conditions": [condition], "advertisedAddresses": addresses}
        _set_status(self.api.store, SHOOTS, status, name, namespace)

    def delete(self, namespace: str, name: str) -> None:
        self.api.store.delete(SHOOTS, name, namespace=namespace)

    async def answer(self, request: web.BaseRequest, segments: list[str], subject: str) -> web.StreamResponse:
        match segments:
            case ("apis", SHOOTS.group, SHOOTS.version, "namespaces", namespace, "shoots", name, "adminkubeconfig"):
                if request.method != "POST":
                    raise refusals.method_not_allowed()
                action = Action(
                    verb="create",
                    group=SHOOTS.group,
                    resource=SHOOTS.plural,
                    subresource="adminkubeconfig",
                    name=name,
                    namespace=namespace,
                )
                self.sandbox.rights.demand(subject, action)
                return answers.document(self._kubeconfig(await request.json(), namespace, name), 201)
        return await self.api.answer(request, segments, subject)

    def _kubeconfig(self, question: Document, namespace: str, name: str) -> Document:
        self.api.store.get(SHOOTS, name, namespace)
        if question.get("kind") != "AdminKubeconfigRequest":
            raise refusals.bad_request("the object is not an AdminKubeconfigRequest")
        life = question.get("spec", {}).get("expirationSeconds", 3600)
        if not _LEAST_S <= life <= _MOST_S:
            raise refusals.bad_request(f"spec.expirationSeconds: {life} is not between {_LEAST_S} and {_MOST_S}")
        token = self.sandbox.tokens.issue(SHOOT_ADMIN, life=life)
        config = kubeconfigs.kubeconfig(
            server=self.sandbox.control_plane_url(name),
            ca_pem=self.sandbox.ca_pem,
            user={"token": token},
            name=f"garden-{namespace}--{name}",
        )
        self.requested += 1
        ends = datetime.fromtimestamp(self.sandbox.tokens.claims(token).exp, UTC)
        status = {
            "kubeconfig": b64encode(msgspec.json.encode(config)).decode(),
            "expirationTimestamp": msgspec.to_builtins(ends),
        }
        return {**question, "metadata": {}, "status": status}


class Kcp:
    """One host with a path for each workspace. `Workspace` objects are in the parent workspace."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.api = sandbox.new_api(WORKSPACES)
        self.sandbox = sandbox
        sandbox.mount(CLUSTERS, self)
        self._workspaces: dict[str, tuple[str, Api]] = {}

    def kubeconfig(self) -> Document:
        """Return a kubeconfig for the parent workspace, with an embedded token."""
        return self.sandbox.mounted_kubeconfig(f"{CLUSTERS}/{PARENT}")

    def url_of(self, name: str) -> str:
        return f"{self.sandbox.url}/{CLUSTERS}/{PARENT}:{name}"

    def create(self, name: str, phase: str = "Ready") -> None:
        self.api.store.create(WORKSPACES, {"metadata": {"name": name}, "spec": {"URL": self.url_of(name)}})
        _set_status(self.api.store, WORKSPACES, {"phase": phase}, name)

    def delete(self, name: str) -> None:
        self.api.store.delete(WORKSPACES, name)

    async def answer(self, request: web.BaseRequest, segments: list[str], subject: str) -> web.StreamResponse:
        """Answer a request to the workspace whose path is the first segment."""
        path, *below = segments or [""]
        api = self.api if path == PARENT else self._workspace(path)
        return await api.answer(request, below, subject)

    def _workspace(self, path: str) -> Api:
        name = path.removeprefix(f"{PARENT}:")
        record = self.api.store[WORKSPACES].get(name)
        if record is None or name == path:
            raise refusals.no_such_path()
        uid, api = self._workspaces.get(name, ("", None))
        if api is None or uid != record.uid:
            api = self.sandbox.new_api(*CONTROL_PLANE)
            self._workspaces[name] = (record.uid, api)
        return api


def _set_status(store: Store, resource: ResourceDefinition, status: Document, name: str, namespace: str = "") -> None:
    store.modify(resource, name, lambda document: {**document, "status": status}, namespace=namespace, part=Part.STATUS)
