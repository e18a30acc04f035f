"""An operator on virtual time, with what it does in its clusters: everything of the controllers above HTTP, seed by
seed, under faults of API servers, of the daemon and of the leader election.

Whatever happens, no object is reconciled twice at the same time, nothing is sent to a cluster with the credential of
another engagement or without the Lease, and no finalizer goes before what it protects. After the last fault, each
cluster is as its objects ask for.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from prometheus_client import CollectorRegistry

import milo_discovery.credentials
from milo_controllers import (
    Controllers,
    Permanent,
    QueuePolicy,
    ReconcileTarget,
    Request,
    Result,
    Watched,
    watches,
    write_holds,
)
from milo_controllers import (
    controllers as controllers_module,
)
from milo_controllers.kinds import Document
from milo_discovery import DiscoveryClient, DisengageReason, Fleet, Kubeconfig
from milo_discovery.errors import PreconditionFailed, Unavailable
from milo_discovery.kubeconfig_access import KubeconfigAccess, render_kubeconfig
from milo_discovery.testing import FakeDiscovery
from milo_discovery.testing.control_plane import ControlPlane
from milo_kube.api_request import Access, ApiRequest
from milo_kube.cache_budget import CacheLimits
from milo_kube.http.errors import TransportError
from tests.simulation.seeded.loop import VirtualLoop, clocks_of

CLUSTERS = ("one", "two", "three")
WIDGETS, CHILDREN, SECRETS = "example.com/v1/widgets", "v1/configmaps", "v1/secrets"
FINALIZER = "example.com/account"
NAMES = "abcd"
STRIKES = (
    *("change",) * 6,
    *(
        "compact",
        "down",
        "engagement",
        "recreate",
        "drain",
        "suspend",
        "move",
        "lease",
        "renew",
        "restart",
        "ownership",
    ),
)
SEEDS = range(60)
LIFETIME_S = 300.0
HELD_S = 300.0


@dataclass
class Project:
    """One incarnation of a project: its API server with its objects."""

    name: str
    uid: str
    endpoint: str
    version: int = 1
    objects: dict[tuple[str, str], Document] = field(default_factory=dict)
    history: list[tuple[int, str, str, Document]] = field(default_factory=list)
    compacted: int = 0
    suspended: bool = False
    is_down: bool = False
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    def store(self, resource: str, name: str, body: Document | None) -> Document:
        """Write an object, or remove it; return it, or its last state."""
        self.version += 1
        before = self.objects.get((resource, name))
        if body is None:
            assert before is not None
            stored = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self.version)}}
            del self.objects[resource, name]
            self.history.append((self.version, resource, "DELETED", stored))
            for (kind, other), child in list(self.objects.items()):  # the garbage collector
                owners = child["metadata"].get("ownerReferences") or ()
                if any(owner["uid"] == before["metadata"]["uid"] for owner in owners):
                    self.store(kind, other, None)
        else:
            stored = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
            self.objects[resource, name] = stored
            self.history.append((self.version, resource, "ADDED" if before is None else "MODIFIED", stored))
        self.bell.set()
        self.bell = asyncio.Event()
        return stored

    def of(self, resource: str) -> list[Document]:
        return [found for (kind, _), found in self.objects.items() if kind == resource]


class Response:
    """A response whose body is read at once, or the events of a watch."""

    def __init__(self, status: int, body: object, *, events: AsyncGenerator[bytes, None] | None = None) -> None:
        self.status = status
        self.headers: dict[str, str] = {}
        self._body = json.dumps(body).encode()
        self._events = events

    async def read(self, limit: int, arrived: Callable[[int], None]) -> bytes:
        arrived(len(self._body))
        return self._body

    async def read_error(self, limit: int) -> bytes:
        return self._body[:limit]

    def chunks(self) -> AsyncGenerator[bytes, None]:
        return self._events if self._events is not None else _once(self._body)

    async def aclose(self) -> None:
        if self._events is not None:
            with suppress(RuntimeError):
                await self._events.aclose()


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _status(code: int, reason: str, name: str = "", *causes: str) -> Response:
    details = {"name": name, "causes": [{"reason": cause} for cause in causes]}
    return Response(code, {"kind": "Status", "code": code, "reason": reason, "message": reason, "details": details})


class Pools:
    """The connections to all API servers."""

    simulation: "Simulation"

    def __init__(self, **_options: object) -> None:
        self.users = 0

    def pool(self, _access: Access) -> "Pools":
        return self

    async def release(self, _pool: object) -> None: ...

    async def open_response(
        self, request: ApiRequest, access: Access, *, sending: Callable[[], None], **_options: object
    ) -> Response:
        return await self.simulation.respond(request, access, sending)


@dataclass
class Plane:
    """What FakeDiscovery needs of a control plane."""

    project: str
    endpoint: str

    def access(self) -> KubeconfigAccess:
        return KubeconfigAccess(server=self.endpoint, token="none")


class Discovery(FakeDiscovery):
    """A daemon that issues a credential for each incarnation, and does not always answer."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        super().__init__()

    async def issue_kubeconfig(self, name: str, *, ttl: timedelta | None = None, incarnation: str = "") -> Kubeconfig:
        await self._simulation.delay()
        if self._simulation.strikes(0.2):
            raise Unavailable("the daemon is being restarted", code="UNAVAILABLE")
        kubeconfig = await super().issue_kubeconfig(name, ttl=ttl, incarnation=incarnation)
        if incarnation and self._engaged[name][0].incarnation != incarnation:
            raise PreconditionFailed("another one", code="FAILED_PRECONDITION", reason="OTHER_INCARNATION")
        return kubeconfig

    def of(self, name: str) -> Any:
        return self._engaged[name][0]

    def _kubeconfig(self, name: str) -> Kubeconfig:
        cluster, _ = self._engaged[name]
        now = self._simulation.now()
        token = f"{cluster.name} {cluster.uid} {cluster.endpoint}"
        access = KubeconfigAccess(server=cluster.endpoint, token=token.replace(" ", "_"))
        return Kubeconfig(
            cluster=name,
            kubeconfig=json.dumps(render_kubeconfig(name, access)).encode(),
            issued_at=now,
            refresh_after=now + timedelta(seconds=0.5 * LIFETIME_S),
            expires_at=now + timedelta(seconds=LIFETIME_S),
        )


class Election:
    """An election that this replica wins and loses."""

    def __init__(self, simulation: "Simulation") -> None:
        self.is_leader = False
        self._simulation = simulation
        self._turn = asyncio.Event()
        self.healed = asyncio.Event()

    def lose(self) -> None:
        self.is_leader = False
        self._turn.set()

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            self._turn.clear()
            self.is_leader = True
            working = asyncio.create_task(work())
            try:
                await self._turn.wait()
                await asyncio.sleep(self._simulation.random.choice((0.0, 0.5, 5.0)))  # it is noticed late
            finally:
                working.cancel()
                await asyncio.wait([working])
                self._simulation.note(self._simulation.running, "reconciles run after the work of the leader has ended")
            if not self.healed.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._simulation.random.choice((0.5, 20.0))):
                        await self.healed.wait()


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.is_healed = False
        self.is_owner = True
        self.violations: list[str] = []
        self.projects: dict[str, Project] = {}
        """The present incarnation of each project."""
        self.running: dict[tuple[str, str], str] = {}
        self.accounts: set[tuple[str, str]] = set()
        """Accounts outside of the clusters: by uid of the project and of the widget."""
        self.lost_posts: set[str] = set()
        """The UIDs of widgets of which a created child may be unknown to the reconciler."""
        self.removed: set[str] = set()
        """The UIDs of widgets that were removed in spite of their finalizer."""
        self._made = 0

    def run(self) -> list[str]:
        loop = self.loop = VirtualLoop(self.random)
        with clocks_of(loop):
            try:
                loop.run_until_complete(self._simulated())
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()
        return self.violations

    def note(self, found: object, what: str) -> None:
        if found:
            self.violations.append(f"{self.loop.time():.2f}: {what}: {found}")

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.loop.wall, UTC)

    async def delay(self) -> None:
        await asyncio.sleep(self.random.choice((0.0, 0.0, 0.05 * self.random.random(), 0.7 * self.random.random())))

    def strikes(self, share: float) -> bool:
        return not self.is_healed and self.random.random() < share

    def _name(self) -> str:
        self._made += 1
        return f"{self._made}"

    # --- the course ---

    async def _simulated(self) -> None:
        self.discovery = Discovery(self)
        election = self.election = Election(self) if self.random.random() < 0.7 else None
        limits = CacheLimits(objects=self.random.choice((3, 100)), retry_s=20.0)
        client = cast(DiscoveryClient, self.discovery)
        self.fleet = Fleet(client, include_kubeconfigs=True, on_drain=self.random.choice(("cancel", "wait")))
        running = Controllers(self.fleet, registry=CollectorRegistry(), resync=None, cache_limits=limits)
        running.reconcile(
            WIDGETS,
            owns=[CHILDREN],
            watches=[watches(SECRETS, map=_widgets_of_secret)],
            workers=self.random.randint(1, 6),
            per_cluster=self.random.randint(1, 3),
            queue=QueuePolicy(max_delay_s=20.0),
            timeout=timedelta(seconds=self.random.choice((5.0, 120.0))),
        )(self._reconcile)
        self.controllers = running
        task = asyncio.create_task(running.run(election=election))
        for name in CLUSTERS:
            self._create_project(name)
            for _ in range(self.random.randint(0, 6)):
                self._change(self.projects[name])
        for _ in range(50):
            await asyncio.sleep(self.random.choice((0.0, 0.1, 1.0, 15.0)))
            self._strike()
            if task.done():
                break
        self._heal(limits)
        await asyncio.sleep(HELD_S + 300.0)
        self._check()
        task.cancel()
        await asyncio.wait([task], timeout=60.0)
        self.note(not task.done(), "the controllers have not ended")
        self.note(not task.cancelled() and task.done() and task.exception(), "the controllers have failed")
        self.note(self.running, "reconciles run after the end")

    def _heal(self, limits: CacheLimits) -> None:
        self.is_healed = True
        if self.election is not None:
            self.election.healed.set()
        if not self.is_owner:
            self.discovery.restart()
        for name in CLUSTERS:
            project = self.projects[name]
            project.is_down = project.suspended = False
            for widget in project.of(WIDGETS)[limits.objects - 1 :]:  # also with a finalizer: its cache is dropped
                self.removed.add(widget["metadata"]["uid"])
                project.store(WIDGETS, widget["metadata"]["name"], None)
            for child in project.of(CHILDREN):
                self._delete(project, CHILDREN, child["metadata"]["name"])
            for secret in project.of(SECRETS)[limits.objects :]:
                self._delete(project, SECRETS, secret["metadata"]["name"])
            if name in self.discovery._engaged:
                if self.discovery.of(name).draining is None:
                    self.discovery.update(name, suspended=False)
                else:
                    self.discovery.disengage(name)
            if name not in self.discovery._engaged:
                self._engage(name)

    def _strike(self) -> None:
        name = self.random.choice(CLUSTERS)
        project, is_engaged = self.projects[name], name in self.discovery._engaged
        match self.random.choice(STRIKES):
            case "change":
                for _ in range(self.random.choice((1, 1, 3, 8))):
                    self._change(project)
            case "compact":
                project.compacted = project.version
            case "down":
                project.is_down = not project.is_down
            case "engagement" if is_engaged:
                self.discovery.disengage(name, DisengageReason.NOT_READY)
            case "engagement":
                self._engage(name)
            case "recreate":
                self._create_project(name)
            case "drain" if is_engaged and self.discovery.of(name).draining is None:
                self.discovery.drain(name)
            case "suspend":
                project.suspended = not project.suspended
                if is_engaged:
                    self.discovery.update(name, suspended=project.suspended)
            case "move" if is_engaged:
                project.endpoint = f"https://{name}-{self._name()}"
                self.discovery.update(name, endpoint=project.endpoint)
                self.discovery.renew(name)
            case "lease" if self.election is not None:
                self.election.lose()
            case "renew" if is_engaged:
                self.discovery.renew(name)
            case "ownership":
                self.discovery.lose_ownership()
                self.is_owner = False
            case "restart":
                self.discovery.restart()
                self.is_owner = True

    def _create_project(self, name: str) -> None:
        """Create a project, or another one of the same name."""
        endpoint = self.projects[name].endpoint if name in self.projects else f"https://{name}"
        if name in self.projects:
            self.projects[name].bell.set()
        self.projects[name] = Project(name, f"uid-{self._name()}", endpoint)
        if self.random.random() < 0.3 and name in self.discovery._engaged:
            self.discovery.disengage(name)
        for _ in range(self.random.randint(0, 3)):
            self._change(self.projects[name])
        self._engage(name)

    def _engage(self, name: str) -> None:
        project = self.projects[name]
        plane = cast(ControlPlane, Plane(name, project.endpoint))
        self.discovery.engage(plane, uid=project.uid, endpoint=project.endpoint, suspended=project.suspended)

    def _change(self, project: Project) -> None:
        name = self.random.choice(NAMES)
        widget = project.objects.get((WIDGETS, name))
        children = project.of(CHILDREN)
        match self.random.choice(("spec", "spec", "secret", "delete", "child", "garble")):
            case "spec" if widget is None:
                meta = {"name": name, "namespace": "", "uid": f"uid-{self._name()}", "generation": 1}
                project.store(WIDGETS, name, {**_typed(WIDGETS), "metadata": meta, "spec": {"content": self._name()}})
            case "spec":
                assert widget is not None
                meta = {**widget["metadata"], "generation": widget["metadata"]["generation"] + 1}
                project.store(WIDGETS, name, {**widget, "metadata": meta, "spec": {"content": self._name()}})
            case "secret":
                meta = {"name": name, "uid": f"secret-{name}"}
                project.store(SECRETS, name, {**_typed(SECRETS), "metadata": meta, "data": {"value": self._name()}})
            case "delete" if widget is not None:
                self._delete(project, WIDGETS, name)
            case "child" if children:
                self._delete(project, CHILDREN, self.random.choice(children)["metadata"]["name"])
            case "garble" if children:
                child = self.random.choice(children)
                project.store(CHILDREN, child["metadata"]["name"], {**child, "data": {"content": "garbled"}})

    def _delete(self, project: Project, resource: str, name: str) -> Document:
        found = project.objects[resource, name]
        if not found["metadata"].get("finalizers"):
            return project.store(resource, name, None)
        if not found["metadata"].get("deletionTimestamp"):
            meta = {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
            return project.store(resource, name, {**found, "metadata": meta})
        return found

    # --- the API servers ---

    async def respond(self, request: ApiRequest, access: Access, sending: Callable[[], None]) -> Response:
        await self.delay()
        if self.strikes(0.03):
            raise TransportError("connect", "refused")
        if self.strikes(0.003):
            raise ValueError("a defect of the transport")
        sending()
        assert access.credential.token is not None
        name, uid, endpoint = access.credential.token.reveal().split("_")
        if request.method != "GET":
            engaged = self.fleet.clusters.get(name)
            self.note(engaged is None or engaged.uid != uid, f"{request.method} after the engagement")
            self.note(self.election is not None and not self.election.is_leader, f"{request.method} without the Lease")
        project = self.projects[name]
        if endpoint != access.server or access.server != project.endpoint:
            return _status(401, "Unauthorized")  # the address may be another's by now
        await self.delay()
        if project.is_down:
            raise TransportError("closed", "down")
        if self.projects[name].uid != uid:
            return _status(401, "Unauthorized")
        if self.strikes(0.05):
            return self.random.choice((_status(500, "InternalError"), _status(429, "TooManyRequests")))
        answer = self._answer(self.projects[name], request)
        if request.method != "GET" and self.strikes(0.05):
            self._note_lost(request)
            raise TransportError("closed", "after the request was executed")
        try:
            await self.delay()
        except asyncio.CancelledError:
            self._note_lost(request)
            raise
        return answer

    def _note_lost(self, request: ApiRequest) -> None:
        if request.method == "POST" and request.path.endswith("/configmaps"):
            owners = json.loads(request.body or b"")["metadata"]["ownerReferences"]
            self.lost_posts.update(owner["uid"] for owner in owners)

    def _answer(self, project: Project, request: ApiRequest) -> Response:
        resource, name = _place(request.path)
        query = {key: values[-1] for key, values in parse_qs(urlsplit(request.url("https://a")).query).items()}
        if resource is None:
            return Response(200, {})  # an event
        if request.method == "GET" and query.get("watch"):
            return self._watched(project, resource, query)
        if request.method == "GET" and not name:
            metadata = {"resourceVersion": str(project.version)}
            items = [_untyped(found) for found in project.of(resource)]
            return Response(200, {**_typed(resource, "List"), "metadata": metadata, "items": items})
        body = json.loads(request.body) if request.body else {}
        if request.method == "POST":
            return self._created(project, resource, body)
        found = project.objects.get((resource, name))
        if found is None:
            return _status(404, "NotFound", name)
        if request.method == "GET":
            return Response(200, found)
        if project.suspended and not found["metadata"].get("deletionTimestamp"):
            return _status(403, "Forbidden", name, "ProjectSuspended")
        assert request.method == "PATCH", request.method
        metadata = body.get("metadata") or {}
        if any(key in metadata and metadata[key] != found["metadata"][key] for key in ("resourceVersion", "uid")):
            return _status(409, "Conflict", name)
        return self._patched(project, resource, name, body)

    def _created(self, project: Project, resource: str, body: Document) -> Response:
        if project.suspended:
            return _status(403, "Forbidden", "new", "ProjectSuspended")
        name = f"{body['metadata']['generateName']}{self._name()}"
        metadata = {**body["metadata"], "name": name, "uid": f"uid-{self._name()}"}
        stored = project.store(resource, name, {**_typed(resource), **body, "metadata": metadata})
        uids = {widget["metadata"]["uid"] for widget in project.of(WIDGETS)}
        if not any(owner["uid"] in uids for owner in metadata["ownerReferences"]):
            project.store(resource, name, None)
        return Response(201, stored)

    def _patched(self, project: Project, resource: str, name: str, body: Document) -> Response:
        before = project.objects[resource, name]
        after = _merged(before, body)
        removed = set(before["metadata"].get("finalizers") or ()) - set(after["metadata"].get("finalizers") or ())
        if removed:
            account = project.uid, before["metadata"]["uid"]
            self.note(account in self.accounts, f"the finalizer of {account} was removed before its account")
            self.note(not before["metadata"].get("deletionTimestamp"), f"the finalizer of {account} was removed early")
        stored = project.store(resource, name, after)
        if stored["metadata"].get("deletionTimestamp") and not stored["metadata"].get("finalizers"):
            project.store(resource, name, None)
        return Response(200, stored)

    def _watched(self, project: Project, resource: str, query: Mapping[str, str]) -> Response:
        if "resourceVersion" not in query and self.random.random() < 0.5:
            return _status(422, "Invalid")
        position = int(query.get("resourceVersion", "0"))
        if 0 < position < project.compacted:
            return _status(410, "Expired")
        return Response(200, {}, events=self._events(project, resource, position, project.endpoint))

    async def _events(
        self, project: Project, resource: str, position: int, endpoint: str
    ) -> AsyncGenerator[bytes, None]:
        if not position:
            for found in project.of(resource):
                yield _line("ADDED", found)
            position = project.version
            marked = {"k8s.io/initial-events-end": "true"}
            yield _line("BOOKMARK", {"metadata": {"resourceVersion": str(position), "annotations": marked}})
        ends_at = self.loop.time() + 200.0
        while self.loop.time() < ends_at:
            bell = project.bell
            await asyncio.sleep(self.random.choice((0.0, 0.0, 0.1, 0.5 if self.is_healed else 3.0)))
            if project.is_down or self.strikes(0.01):
                raise TransportError("closed", "cut")
            if self.projects[project.name] is not project or project.endpoint != endpoint:
                await asyncio.sleep(1e6)  # nothing more arrives from a former address
            if position < project.compacted and self.strikes(0.5):
                yield _line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
                return
            news = [change for change in project.history if change[0] > position]
            for version, kind, type_, found in news:
                position = version
                if kind == resource:
                    yield _line(type_, found)
            if not news:
                with suppress(TimeoutError):
                    async with asyncio.timeout(50.0):
                        await bell.wait()
                if project.bell is bell:
                    yield _line("BOOKMARK", {"metadata": {"resourceVersion": str(position)}})

    # --- the operator ---

    async def _reconcile(self, request: Request) -> Result | None:
        key = request.cluster.name, request.name
        self.note(self.running.get(key), f"{key} is reconciled twice at the same time")
        self.running[key] = request.cluster.uid
        try:
            await self._pause()
            await self._reconciled(request)
            await self._pause()
            if self.strikes(0.05):
                raise Permanent("no")
            if self.strikes(0.05):
                return Result(requeue_after=timedelta(seconds=2))
        finally:
            try:
                if self.strikes(0.2):
                    await asyncio.sleep(self.random.choice((0.0, 2.0)))  # a cleanup
            finally:
                self.running.pop(key, None)
        return None

    async def _pause(self) -> None:
        await asyncio.sleep(self.random.choice((0.0, 0.0, 0.1, 0.0 if self.is_healed else 8.0)))

    async def _reconciled(self, request: Request) -> None:
        widget = await request.get()
        if widget is None:
            return
        account = request.cluster.uid, widget["metadata"]["uid"]
        await self._pause()
        if widget["metadata"].get("deletionTimestamp"):
            self.accounts.discard(account)
            await self._pause()
            await request.remove_finalizer(FINALIZER)
            return
        await request.ensure_finalizer(FINALIZER)
        self.accounts.add(account)
        if self.strikes(0.1):
            raise OSError("the reconciler failed")
        secret = await request.get(SECRETS, request.name)
        content = f"{widget['spec']['content']}/{secret and secret['data']['value']}"
        children = list(request.list(CHILDREN, owned=True))
        if not children:
            body = {"metadata": {"generateName": f"{request.name}-"}, "data": {"content": content}}
            await request.create(CHILDREN, body, owned=True)
            await request.event("Created", "made a child")
        for child in children:
            if child["data"]["content"] != content:
                await request.patch(CHILDREN, child["metadata"]["name"], {"data": {"content": content}})
        if (widget.get("status") or {}).get("content") != content:
            await request.patch_status({"content": content})

    # --- the end ---

    def _check(self) -> None:
        self.note(not self.controllers.health().synced, f"not synced: {self.controllers.health()}")
        for project in self.projects.values():
            widgets = project.of(WIDGETS)
            open_ = {uid for owner, uid in self.accounts if owner == project.uid} - self.removed
            self.note(open_ ^ {widget["metadata"]["uid"] for widget in widgets}, f"accounts of {project.name}")
            for widget in widgets:
                self._check_widget(project, widget)

    def _check_widget(self, project: Project, widget: Document) -> None:
        name, uid = widget["metadata"]["name"], widget["metadata"]["uid"]
        what = f"{project.name}/{name}"
        secret = project.objects.get((SECRETS, name))
        content = f"{widget['spec']['content']}/{secret and secret['data']['value']}"
        self.note(widget["metadata"].get("deletionTimestamp"), f"{what} is not deleted")
        self.note(FINALIZER not in (widget["metadata"].get("finalizers") or ()), f"{what} has no finalizer")
        self.note((widget.get("status") or {}).get("content") != content, f"{what} is not reconciled")
        owned = [
            child
            for child in project.of(CHILDREN)
            if any(owner["uid"] == uid for owner in child["metadata"].get("ownerReferences") or ())
        ]
        self.note(not owned, f"{what} has no child")
        self.note(len(owned) > 1 and uid not in self.lost_posts, f"{what} has {len(owned)} children")
        self.note([child for child in owned if child["data"]["content"] != content], f"{what} has an old child")


def _widgets_of_secret(change: Watched[Any]) -> list[ReconcileTarget]:
    return [ReconcileTarget(change.name)]


def _typed(resource: str, suffix: str = "") -> Document:
    kind = {WIDGETS: "Widget", CHILDREN: "ConfigMap", SECRETS: "Secret"}[resource]
    return {"apiVersion": resource.rpartition("/")[0], "kind": kind + suffix}


def _untyped(found: Document) -> Document:
    return {key: found[key] for key in found if key not in ("kind", "apiVersion")}


def _place(path: str) -> tuple[str | None, str]:
    """Return the resource and the name in a path; None as resource if it is none of the operator's."""
    for resource in (WIDGETS, CHILDREN, SECRETS):
        version, _, plural = resource.rpartition("/")
        prefix = f"/apis/{version}/" if "/" in version else f"/api/{version}/"
        if path.startswith(prefix):
            found, name, *_ = (*path.removeprefix(prefix).split("/"), "")
            if found == plural:
                return resource, name
    return None, ""


def _merged(before: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(before, dict):
        return patch
    merged = {**before, **{key: _merged(before.get(key), value) for key, value in patch.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def _line(type_: str, found: Document) -> bytes:
    return json.dumps({"type": type_, "object": found}).encode() + b"\n"


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers_module, "Pools", Pools)
    monkeypatch.setattr(Controllers, "_watchdog", lambda _self: nullcontext())
    # Longer than any fault: otherwise a reconcile may create a second child while the cache lacks the first.
    monkeypatch.setattr(write_holds, "WITHIN_S", HELD_S)


def simulate(seed: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    simulation = Simulation(seed)
    monkeypatch.setattr(Pools, "simulation", simulation, raising=False)
    monkeypatch.setattr(milo_discovery.credentials, "_now", simulation.now)
    random.seed(seed)  # jitter
    return simulation.run()


@pytest.mark.parametrize("seed", SEEDS)
def test_clusters_are_as_their_objects_ask_for_after_the_last_fault(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulate(seed, monkeypatch) == []
