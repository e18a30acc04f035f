"""A service's provider in the sandbox: its project with ServiceConsumers, and a daemon that follows them."""

import json
from typing import Any

import yaml

from milo_sandbox.admission import Part
from milo_sandbox.resources import SERVICE_CONSUMERS
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess

CONSUMERS = "/apis/services.miloapis.com/v1alpha1/serviceconsumers"
SERVICE = "dns.example.com"


class ServiceProvider:
    """The project `provider`, whose service other projects consume."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        workspace.sandbox.projects.create("provider", ready=True)
        self.store = workspace.sandbox.control_plane("provider")
        self.kubeconfig = json.dumps(workspace.sandbox.kubeconfig(project="provider")).encode()

    def daemon(self, drain_s: int = 300, *, follow_projects: bool = False, **settings: Any) -> DaemonProcess:
        """Return a daemon for the service, whose kubeconfigs have a token of the sandbox's administrator."""
        directory, sandbox = self.workspace.directory, self.workspace.sandbox
        (directory / "token").write_text(sandbox.token())
        config = {
            "sources": [self.source("dns", drain_s, follow_projects=follow_projects)],
            "kubeconfigs": {"issuers": [{"name": "token", "type": "token-file", "path": str(directory / "token")}]},
            "listen": [self.workspace.address],
            "http_listen": "off",
            "connectivity": {"interval": "off"},
            **settings,
        }
        file = directory / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        return DaemonProcess(self.workspace.address, "--config", str(file), is_forked=True)

    def source(self, name: str, drain_s: int = 300, *, follow_projects: bool) -> dict[str, Any]:
        """Return the settings of a source of the service's consumers."""
        kubeconfig = self.workspace.directory / "provider"
        kubeconfig.write_bytes(self.kubeconfig)
        return {
            "name": name,
            "kind": "service-consumer",
            "discovery_kubeconfig": str(kubeconfig),
            "project_kubeconfig": str(self.workspace.kubeconfig),
            "settings": {"services": [SERVICE], "drain": f"{drain_s}s", "follow_projects": follow_projects},
        }

    def activate(self, project: str) -> None:
        """Activate the service for a project."""
        spec = {"serviceRef": {"name": SERVICE}, "consumerProjectRef": {"name": project}}
        self.store.create(SERVICE_CONSUMERS, {"metadata": {"name": f"sc-{project}"}, "spec": spec})
        self.set_status(project, serviceName=SERVICE, phase="Active")

    def deactivate(self, project: str) -> None:
        self.store.delete(SERVICE_CONSUMERS, f"sc-{project}")

    def signal(self, project: str, *, suspended: bool, reason: str) -> None:
        """Signal to the operators of the service that the platform suspended or reinstated the project."""
        condition = {
            "type": "Suspended",
            "status": "True" if suspended else "False",
            "reason": reason,
            "message": "told by the platform",
            "lastTransitionTime": "2026-11-20T08:00:00Z",
        }
        others = [other for other in self.conditions(project).values() if other["type"] != "Suspended"]
        self.set_status(project, conditions=[*others, condition])

    def conditions(self, project: str) -> dict[str, dict[str, str]]:
        status = self.store.get(SERVICE_CONSUMERS, f"sc-{project}").document().get("status", {})
        return {condition["type"]: condition for condition in status.get("conditions", ())}

    def set_status(self, project: str, **status: Any) -> None:
        def change(document: dict[str, Any]) -> dict[str, Any]:
            return {**document, "status": {**document.get("status", {}), **status}}

        self.store.modify(SERVICE_CONSUMERS, f"sc-{project}", change, part=Part.STATUS)
