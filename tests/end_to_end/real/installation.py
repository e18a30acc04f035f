"""The other components of a Milo installation, simulated step by step.

The project controller creates a ProjectControlPlane for each Project; a policy creates its namespace; a deployment
creates a control plane in it and the Secret `kubeconfig`; then conditions become True, that of the control plane
first. When a project is deleted, the controller waits until it is empty, and then deletes its control plane.
"""

from datetime import timedelta
from typing import Any

from tests.end_to_end.real.api import Api
from tests.end_to_end.real.certificates import INSIDE
from tests.end_to_end.real.kubeconfig import with_certificate
from tests.end_to_end.real.servers import RealApi
from tests.end_to_end.real.watching import condition, thing
from tests.end_to_end.scenarios.objects import PROJECT_FINALIZER

SECRET_KEY = "value"
_PREFIX = "resourcemanager.miloapis.com"


class Project:
    """A tenant's project, with its objects on both servers."""

    def __init__(self, name: str, organization: str, core: RealApi, infrastructure: RealApi) -> None:
        self.name = name
        self.uid = ""
        self._organization = organization
        self._core = core
        self._infrastructure = infrastructure
        self._at_core = f"{core.collection}/{name}"
        self._at_infrastructure = f"{infrastructure.collection}/{name}"

    @property
    def namespace(self) -> str:
        return f"project-{self.uid}"

    @property
    def deployed_at(self) -> str:
        """The address in the Secret, which is not the one that daemons are configured with."""
        return f"deployed-{self.uid}.{INSIDE}:6443"

    # --- creation, in order ---

    async def ask_for_it(self) -> None:
        labels = {f"{_PREFIX}/organization-name": self._organization}
        wanted = thing(self._core, self.name, labels=labels, finalizers=[PROJECT_FINALIZER])
        async with self._core.api() as api:
            self.uid = (await api.call("POST", self._core.collection, wanted))["metadata"]["uid"]

    async def begin_control_plane(self) -> None:
        labels = {f"{_PREFIX}/project-name": self.name, f"{_PREFIX}/project-uid": self.uid}
        annotations = {f"{_PREFIX}/owner-name": self._organization}
        wanted = thing(self._infrastructure, self.name, labels=labels, annotations=annotations)
        async with self._infrastructure.api() as api:
            await api.call("POST", self._infrastructure.collection, wanted)

    async def make_namespace(self) -> None:
        async with self._infrastructure.api() as api:
            await api.call("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    async def deploy(self, *, lifetime: timedelta = timedelta(hours=1)) -> None:
        """Create the Secret with an administrator's kubeconfig of the control plane, valid for the given time."""
        user = f"administrator-of-{self.name}"
        certificate = self._infrastructure.authority.client(user, (), lifetime=lifetime)
        kubeconfig = self._infrastructure.kubeconfig_with(with_certificate(*certificate), user).read_text()
        kubeconfig = kubeconfig.replace(self._infrastructure.url, f"https://{self.deployed_at}")
        secret = {"metadata": {"name": "kubeconfig"}, "stringData": {SECRET_KEY: kubeconfig}}
        async with self._infrastructure.api() as api:
            await api.call("POST", f"/api/v1/namespaces/{self.namespace}/secrets", secret)

    async def report(self, status: str, reason: str) -> None:
        """Set the control plane's condition, as its deployment does."""
        async with self._infrastructure.api() as api:
            await _set_condition(api, self._at_infrastructure, "ControlPlaneReady", status, reason)

    async def report_project(self, status: str, reason: str) -> None:
        async with self._core.api() as api:
            await _set_condition(api, self._at_core, "Ready", status, reason)

    # --- use ---

    async def keep(self, name: str, finalizer: str) -> None:
        """Create an object that an operator must clean up before the project can be deleted."""
        kept = {"metadata": {"name": name, "finalizers": [finalizer]}}
        async with self._infrastructure.api() as api:
            await api.call("POST", self._config_maps, kept)

    async def undo(self, name: str) -> None:
        """Clean up an object that `keep` created, as its operator does: remove its finalizer."""
        async with self._infrastructure.api() as api:
            await api.call("PATCH", f"{self._config_maps}/{name}", {"metadata": {"finalizers": None}})

    async def left(self) -> list[str]:
        async with self._infrastructure.api() as api:
            items = (await api.call("GET", self._config_maps))["items"]
        return [item["metadata"]["name"] for item in items]

    # --- deletion, in order ---

    async def ask_to_delete(self) -> None:
        async with self._core.api() as api:
            await api.call("DELETE", self._at_core)

    async def drain(self) -> str:
        """Do one step of the project controller: delete the objects, report the cleanup, and finish if none is left."""
        async with self._infrastructure.api() as api:
            await api.call("DELETE", self._config_maps)
        names = await self.left()
        reason, message = (
            ("CleanupAwaitingCompletion", f"waiting for {', '.join(names)}")
            if names
            else (
                "CleanupComplete",
                "nothing is left",
            )
        )
        async with self._core.api() as api:
            await _set_condition(api, self._at_core, "ResourceCleanup", "True", reason, message)
        if not names:
            await self._finish()
        return reason

    async def _finish(self) -> None:
        async with self._infrastructure.api() as api:
            await api.call("DELETE", self._at_infrastructure)
        async with self._core.api() as api:
            await api.call("PATCH", self._at_core, {"metadata": {"finalizers": None}})

    @property
    def _config_maps(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/configmaps"


async def _set_condition(api: Api, path: str, kind: str, status: str, reason: str, message: str = "") -> None:
    held: list[dict[str, Any]] = (await api.call("GET", path)).get("status", {}).get("conditions", [])
    others = [other for other in held if other["type"] != kind]
    conditions = [*others, condition(kind, status, reason, message)]
    await api.call("PATCH", f"{path}/status", {"status": {"conditions": conditions}})
