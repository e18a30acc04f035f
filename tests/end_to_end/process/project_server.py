"""API servers of Projects and ServiceConsumers over plain HTTP, which a test can replace with another one, or with a
lagging replica."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from milo_discoveryd.sources.project import PROJECTS
from milo_discoveryd.sources.service_consumer import SERVICE_CONSUMERS

_SERVICE = "dns.example.com"
_CONTROL_PLANE = f"{PROJECTS.path}/provider/control-plane"
_READ_AGAIN_S = 0.02
_REQUESTED_AT = "2026-01-01T00:00:00Z"


class Projects:
    """The Projects of one API server, with the changes that a watch replays."""

    def __init__(self, names: Iterable[str] = (), *, version: int = 1000, of: str = "") -> None:
        """`of` is a part of the UIDs: equal names on two servers are two Projects."""
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = version
        self.oldest = version
        """Watches from an earlier version have expired."""
        self.changes: list[tuple[int, str, dict[str, Any]]] = []
        self._of = of
        for name in names:
            self.put(name)
        self.compact()

    def put(self, name: str, **labels: str) -> None:
        self.version += 1
        known = self.objects.get(name)
        uid = known["metadata"]["uid"] if known else f"{self._of}{name}-{self.version}"
        metadata = {"name": name, "uid": uid, "resourceVersion": str(self.version), "labels": labels}
        self.objects[name] = {"metadata": metadata, **self._content(name)}
        self.changes.append((self.version, "MODIFIED" if known else "ADDED", self.objects[name]))

    def request_deletion(self, name: str) -> None:
        self.version += 1
        found = self.objects[name]
        metadata = {**found["metadata"], "resourceVersion": str(self.version), "deletionTimestamp": _REQUESTED_AT}
        self.objects[name] = {**found, "metadata": metadata}
        self.changes.append((self.version, "MODIFIED", self.objects[name]))

    def delete(self, name: str) -> None:
        self.version += 1
        gone = self.objects.pop(name)
        metadata = {**gone["metadata"], "resourceVersion": str(self.version)}
        self.changes.append((self.version, "DELETED", {**gone, "metadata": metadata}))

    def compact(self) -> None:
        self.oldest = self.version
        self.changes.clear()

    def _content(self, name: str) -> dict[str, Any]:
        del name
        return {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}


class Consumers(Projects):
    """ServiceConsumers that are active, each with the name of its project."""

    def _content(self, name: str) -> dict[str, Any]:
        return {
            "spec": {"consumerProjectRef": {"name": name}},
            "status": {"serviceName": _SERVICE, "phase": "Active"},
        }


class ProjectServer:
    """Serves Projects; `projects` can be replaced while it runs."""

    def __init__(self, projects: Projects, path: str = PROJECTS.path) -> None:
        self.projects = projects
        self._path = path
        self.status = 200
        """The status of all responses except those to health checks. Objects are served only with the status 200."""
        self.headers: dict[str, str] = {}
        """Headers of all responses."""
        self.lists = 0
        self.requests: list[str] = []
        self._port = 0
        self._runner: web.ServerRunner | None = None
        self._streams: set[asyncio.Event] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["ProjectServer"]:
        with socket.socket() as reserved:  # bound, so that no other process takes the port while the server is stopped
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            self._port = reserved.getsockname()[1]
            await self.start()
            try:
                yield self
            finally:
                await self.stop()

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            self.cut()
            await runner.cleanup()

    def replace(self, projects: Projects) -> None:
        """Serve other Projects; open watches close, and earlier resource versions have expired."""
        self.projects = projects
        projects.compact()
        self.cut()

    def cut(self) -> None:
        """Close all watches."""
        for ended in self._streams:
            ended.set()

    def source(self, name: str, directory: Path) -> dict[str, Any]:
        """Return the settings of a source that follows the server."""
        kubeconfig = self.kubeconfig(directory / f"{name}.kubeconfig")
        return {"name": name, "kind": "project", "discovery_kubeconfig": kubeconfig}

    def kubeconfig(self, path: Path, context: str = "") -> str:
        cluster = {"name": "c", "cluster": {"server": f"{self.url}{context}"}}
        user, context = {"name": "u", "user": {"token": "t"}}, {"name": "x", "context": {"cluster": "c", "user": "u"}}
        found = {"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **found}))
        return str(path)

    def settings(self, path: Path) -> dict[str, Any]:
        """Return the settings of a daemon that follows the server alone."""
        pages = {"streaming_lists": "off"}
        return {"discovery_kubeconfig": self.kubeconfig(path), "plain_loopback": True, "watch": pages}

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        if not request.path.startswith(self._path):
            return web.Response(text="ok", headers=self.headers)
        if self.status != 200:
            return web.json_response({"kind": "Status", "code": self.status}, status=self.status, headers=self.headers)
        if "watch" in request.query:
            return await self._watch(request)
        projects, name = self.projects, request.path.removeprefix(self._path).strip("/")
        if name:
            missing = {"kind": "Status", "code": 404, "reason": "NotFound", "details": {"name": name}}
            found = projects.objects.get(name, missing)
            return web.json_response(found, status=404 if found is missing else 200, headers=self.headers)
        self.lists += 1
        metadata = {"resourceVersion": str(projects.version)}
        body = {"metadata": metadata, "items": [*projects.objects.values()]}
        return web.json_response(body, headers=self.headers)

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        response, ended = web.StreamResponse(headers=self.headers), asyncio.Event()
        self._streams.add(ended)
        with suppress(ConnectionError):  # the daemon was killed
            await self._send_changes(request, response, ended)
        self._streams.discard(ended)
        return response

    async def _send_changes(self, request: web.BaseRequest, response: web.StreamResponse, ended: asyncio.Event) -> None:
        projects, sent = self.projects, int(request.query["resourceVersion"])
        await response.prepare(request)
        if sent < projects.oldest:
            expired = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": expired}).encode() + b"\n")
            return
        while not ended.is_set():
            for version, kind, found in [*projects.changes]:
                if version > sent:
                    await response.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")
                    sent = version
            await asyncio.sleep(_READ_AGAIN_S)


class ProviderServer(ProjectServer):
    """Serves Projects, and ServiceConsumers in the control plane of the project `provider`."""

    def __init__(self, projects: Projects, consumers: Consumers) -> None:
        super().__init__(projects)
        self.consumers = ProjectServer(consumers, f"{_CONTROL_PLANE}{SERVICE_CONSUMERS.path}")

    def cut(self) -> None:
        super().cut()
        self.consumers.cut()

    def source(self, name: str, directory: Path) -> dict[str, Any]:
        kubeconfigs = {
            "discovery_kubeconfig": self.kubeconfig(directory / f"{name}.kubeconfig", _CONTROL_PLANE),
            "project_kubeconfig": self.kubeconfig(directory / f"{name}.root.kubeconfig"),
        }
        settings = {"services": [_SERVICE], "follow_projects": True}
        return {"name": name, "kind": "service-consumer", "settings": settings, **kubeconfigs}

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith(_CONTROL_PLANE):
            return await self.consumers._answer(request)
        return await super()._answer(request)
