"""Project lifecycles under Milo's controllers, from creation to deletion, as seen at its API servers.

Each is recorded on Milo with its own controllers, and a sandbox with controllers must match the recording. Only lasting
states are recorded, since the steps between them take a different time in each run.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias

import aiohttp

from tests.end_to_end.scenarios import kubeconfig
from tests.integration.sandbox_conformance.transcripts import Transcript

DELETED_WITHIN_S = 180.0
"""Long, since Milo looks for remaining objects of a deleted project only every 30 seconds."""

GROUP = "/apis/resourcemanager.miloapis.com/v1alpha1"
PROJECTS = f"{GROUP}/projects"
SUSPENSIONS = f"{GROUP}/projectsuspensions"
CONTROL_PLANES = "/apis/infrastructure.miloapis.com/v1alpha1/projectcontrolplanes"
NAMESPACES = "/api/v1/namespaces"
CONFIG_MAPS = f"{NAMESPACES}/default/configmaps"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MARKS = "/apis/lives.example.com/v1/marks"
MARK = {"apiVersion": "lives.example.com/v1", "kind": "Mark", "metadata": {"name": "of-the-first"}}
FINALIZER = "example.com/operator"

_ORGANIZATION = "resourcemanager.miloapis.com/organization-name"
_ROLES = "/apis/rbac.authorization.k8s.io/v1"
_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "marks.lives.example.com"},
    "spec": {
        "group": "lives.example.com",
        "scope": "Cluster",
        "names": {"kind": "Mark", "plural": "marks"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
}


class Places(NamedTuple):
    """Kubeconfigs of an installation."""

    core: Path
    infrastructure: Path
    tenant: Path
    """The kubeconfig of a user without special permissions, at the core API."""


class Witness:
    """A client that records the responses to its requests."""

    def __init__(self, places: Places) -> None:
        self.transcript: Transcript = []
        self._access = {name: kubeconfig.read(path) for name, path in places._asdict().items()}
        self._uids: dict[str, str] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._sessions = {
            name: await self._stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=access.tls))
            )
            for name, access in self._access.items()
        }
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def ask(self, method: str, path: str, body: Any = None, *, project: str = "", of: str = "core") -> Any:
        """Send a request, and record the response.

        Milo answers 429 until it has opened the storage of a kind in a project.
        """
        status, answer = await self.send(method, path, body, project=project, of=of)
        async with asyncio.timeout(DELETED_WITHIN_S):
            while status == 429:
                await asyncio.sleep(0.1)
                status, answer = await self.send(method, path, body, project=project, of=of)
        self._note(f"{method} {path}", project, of, status, answer)
        return answer

    async def until(self, holds: Callable[[int, Any], bool], path: str, *, project: str = "", of: str = "core") -> Any:
        """Read until the response fulfills a condition, and record it."""
        status, answer = 0, None
        try:
            async with asyncio.timeout(DELETED_WITHIN_S):
                status, answer = await self.send("GET", path, project=project, of=of)
                while not holds(status, answer):
                    await asyncio.sleep(0.1)
                    status, answer = await self.send("GET", path, project=project, of=of)
        except TimeoutError:
            raise AssertionError(f"{path} of {project or of} is still {status}: {answer}") from None
        self._note(f"GET {path}", project, of, status, answer)
        return answer

    async def send(
        self, method: str, path: str, body: Any = None, *, project: str = "", of: str = "core"
    ) -> tuple[int, Any]:
        """Send a request without recording it; return the status and the response."""
        access = self._access[of]
        prefix = f"{PROJECTS}/{project}/control-plane" if project else ""
        headers = {"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"}
        if token := access.token():
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body)
        async with self._sessions[of].request(
            method, access.server + prefix + path, data=data, headers=headers
        ) as response:
            text = await response.text()
        try:
            return response.status, json.loads(text)
        except json.JSONDecodeError:
            return response.status, text

    def _note(self, asked: str, project: str, of: str, status: int, answer: Any) -> None:
        where = {"project": project} if project else {"server": of}
        self.transcript.append({"asked": asked, **where, "status": status, "answer": self._summary(answer)})

    def _summary(self, answer: Any) -> Any:
        """Return the parts of a response that are the same in each run, and that Milo determines."""
        match answer:
            case {"kind": "Status", **status}:
                causes = [cause["reason"] for cause in status.get("details", {}).get("causes", [])]
                return {"reason": status.get("reason", status["status"]), **({"causes": causes} if causes else {})}
            case {"items": list(items)}:
                return [item["metadata"]["name"] for item in items]
            case {"metadata": dict(metadata), **rest}:
                status = rest.get("status", {})
                conditions = {
                    entry["type"]: [entry["status"], entry["reason"], entry["message"]]
                    for entry in sorted(status.get("conditions", ()), key=lambda entry: str(entry["type"]))
                    if entry["type"] in ("Ready", "Suspended", "ResourceCleanup")
                }
                kept = {
                    "labels": {
                        key: self._uids.get(value, value) for key, value in sorted(metadata.get("labels", {}).items())
                    },
                    "annotations": metadata.get("annotations"),
                    "finalizers": metadata.get("finalizers"),
                    "uid": self._uids.setdefault(metadata["uid"], f"uid {len(self._uids) + 1}"),
                    "is terminating": "deletionTimestamp" in metadata,
                    "conditions": conditions,
                    "suspensions": [
                        {**suspension, "suspendedAt": "a time"} for suspension in status.get("suspensions", ())
                    ],
                }
                return {key: value for key, value in kept.items() if value}
            case _:
                return answer


Life: TypeAlias = Callable[[Witness], Awaitable[None]]
LIVES: dict[str, Life] = {}


def life(function: Life) -> Life:
    LIVES[function.__name__.replace("_", " ")] = function
    return function


async def record(name: str, places: Places) -> Transcript:
    async with Witness(places) as witness:
        await LIVES[name](witness)
    return witness.transcript


async def begin(witness: Witness, name: str, *, organization: str = "") -> None:
    """Create a project, wait until it is ready, and admit the tenant."""
    project = {
        "apiVersion": "resourcemanager.miloapis.com/v1alpha1",
        "kind": "Project",
        "metadata": {"name": name, "labels": {_ORGANIZATION: organization} if organization else {}},
        "spec": {"ownerRef": {"kind": "Organization", "name": organization or "acme"}},
    }
    created, _ = await witness.send("POST", PROJECTS, project)
    assert created == 201, created
    await witness.until(
        lambda _, answer: condition(answer, "Ready") == "True" and bool(condition(answer, "Suspended")),
        f"{PROJECTS}/{name}",
    )
    # Roles at the root, since Milo's RBAC uses no others. The sandbox stores no roles, and its administrator may do
    # everything.
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    await witness.send("POST", f"{_ROLES}/clusterroles", {"metadata": {"name": "all"}, "rules": rules})
    binding = {
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tenant"}],
    }
    await witness.send("POST", f"{_ROLES}/clusterrolebindings", binding)
    async with asyncio.timeout(DELETED_WITHIN_S):
        while (await witness.send("GET", CONFIG_MAPS, project=name, of="tenant"))[0] != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def end(witness: Witness, name: str) -> None:
    await witness.send("DELETE", f"{PROJECTS}/{name}")
    await gone(witness, name)


async def gone(witness: Witness, name: str) -> None:
    await witness.until(lambda status, _: status == 404, f"{PROJECTS}/{name}")


async def suspend(witness: Witness, name: str, project: str, reason: str) -> None:
    suspension = {
        "apiVersion": "resourcemanager.miloapis.com/v1alpha1",
        "kind": "ProjectSuspension",
        "metadata": {"name": name},
        "spec": {
            "projectRef": {"name": project},
            "reason": reason,
            "reinstateAuthority": "Consumer",
            "requestedBy": "a test",
        },
    }
    created, answer = await witness.send("POST", SUSPENSIONS, suspension)
    assert created == 201, answer


async def lift(witness: Witness, name: str) -> None:
    await witness.send("PATCH", f"{SUSPENSIONS}/{name}/status", {"status": {"phase": "Lifted"}})


async def config_map(witness: Witness, project: str, name: str, *finalizers: str, of: str = "core") -> int:
    document = {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "finalizers": list(finalizers)}
    }  # fmt: skip
    return (await witness.send("POST", CONFIG_MAPS, document, project=project, of=of))[0]


def says(kind: str, words: str) -> Callable[[int, Any], bool]:
    """Return a predicate for `until`: the message of the project's condition contains the words."""
    return lambda _, answer: words in _field(answer, kind, "message")


def waits_for_operators(_: int, project: Any) -> bool:
    """Return whether the deletion of a project waits for finalizers of operators, and for nothing else."""
    message = _field(project, "ResourceCleanup", "message")
    return FINALIZER in message and "milo-system" not in message


def condition(answer: Any, kind: str) -> str:
    return _field(answer, kind, "status")


def _field(answer: Any, kind: str, field: str) -> str:
    conditions = answer.get("status", {}).get("conditions", ()) if isinstance(answer.get("status"), dict) else ()
    return next((str(entry[field]) for entry in conditions if entry["type"] == kind), "")


@life
async def a_project_begins(witness: Witness) -> None:
    await begin(witness, "begun")
    await witness.ask("GET", f"{CONTROL_PLANES}/begun", of="infrastructure")
    await witness.until(lambda _, answer: len(answer["items"]) == 2, NAMESPACES, project="begun")
    unserved = "/apis/events.k8s.io/v1/namespaces/default/events"
    assert (await witness.send("GET", unserved, project="begun"))[0] == 404
    await witness.ask("GET", f"{NAMESPACES}/default/events", project="begun")
    await end(witness, "begun")
    await witness.until(lambda status, _: status == 404, f"{CONTROL_PLANES}/begun", of="infrastructure")


@life
async def a_name_without_a_project_answers(witness: Witness) -> None:
    await witness.ask("GET", f"{PROJECTS}/never")
    await witness.ask("GET", "/readyz", project="never")
    await witness.ask("GET", NAMESPACES, project="never")
    assert await config_map(witness, "never", "lost") == 404
    await witness.send("POST", NAMESPACES, {"metadata": {"name": "tenant"}}, project="never")
    await witness.ask("POST", f"{NAMESPACES}/tenant/configmaps", {"metadata": {"name": "kept"}}, project="never")
    await begin(witness, "never")
    await witness.ask("GET", f"{NAMESPACES}/tenant/configmaps", project="never")
    await end(witness, "never")
    await witness.ask("GET", "/readyz", project="never")
    await witness.ask("GET", CONFIG_MAPS, project="never")


@life
async def definitions_are_global_and_a_recreated_project_has_leftovers(witness: Witness) -> None:
    await begin(witness, "again")
    await witness.until(lambda _, answer: len(answer["items"]) == 2, NAMESPACES, project="again")
    await witness.send("POST", DEFINITIONS, _DEFINITION, project="again")
    await witness.until(lambda status, _: status == 200, MARKS, project="again")
    await witness.until(lambda status, _: status == 200, MARKS, project="other")
    await witness.until(lambda status, _: status == 200, MARKS)
    await witness.send("POST", MARKS, MARK, project="again")
    await witness.ask("GET", f"{NAMESPACES}/default", project="again")
    await end(witness, "again")
    await begin(witness, "again")
    await witness.ask("GET", MARKS, project="again")
    await witness.ask("GET", NAMESPACES, project="again")
    await witness.ask("GET", f"{NAMESPACES}/default", project="again")
    await witness.send("DELETE", f"{DEFINITIONS}/marks.lives.example.com", project="other")
    await witness.until(lambda status, _: status == 404, MARKS, project="again")
    await end(witness, "again")


@life
async def a_deletion_waits_until_the_control_plane_is_empty(witness: Witness) -> None:
    await begin(witness, "slow")
    await witness.send("POST", NAMESPACES, {"metadata": {"name": "tenant"}}, project="slow")
    held = {"metadata": {"name": "held", "finalizers": [FINALIZER]}}
    for namespace in ("default", "tenant"):
        await witness.send("POST", f"{NAMESPACES}/{namespace}/configmaps", held, project="slow")
    await config_map(witness, "slow", "plain")
    await witness.send("DELETE", f"{PROJECTS}/slow")
    await witness.until(waits_for_operators, f"{PROJECTS}/slow")
    await witness.ask("GET", CONFIG_MAPS, project="slow")
    await witness.ask("GET", NAMESPACES, project="slow")
    await witness.ask("GET", f"{CONTROL_PLANES}/slow", of="infrastructure")
    for namespace in ("default", "tenant"):
        path = f"{NAMESPACES}/{namespace}/configmaps/held"
        await witness.ask("PATCH", path, {"metadata": {"finalizers": None}}, project="slow", of="tenant")
    await gone(witness, "slow")
    await witness.until(lambda status, _: status == 404, f"{CONTROL_PLANES}/slow", of="infrastructure")


@life
async def a_suspended_project_refuses_to_create_and_to_change(witness: Witness) -> None:
    await begin(witness, "paused")
    for name, finalizers in (("one", ()), ("held", (FINALIZER,))):
        assert await config_map(witness, "paused", name, *finalizers, of="tenant") == 201
    await suspend(witness, "first", "paused", "Fraud")
    await suspend(witness, "second", "paused", "Billing")
    await witness.until(says("Suspended", "first, second"), f"{PROJECTS}/paused")
    one, held = f"{CONFIG_MAPS}/one", f"{CONFIG_MAPS}/held"
    data = {"data": {"changed": "yes"}}
    # The API server's admission receives the suspension by a watch, so it applies with a delay.
    async with asyncio.timeout(DELETED_WITHIN_S):
        while await config_map(witness, "paused", "probe", of="tenant") != 403:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await witness.ask("POST", CONFIG_MAPS, {"metadata": {"name": "new"}}, project="paused", of="tenant")
    await witness.ask("PATCH", one, data, project="paused", of="tenant")
    await witness.ask("GET", one, project="paused", of="tenant")
    await witness.send("DELETE", held, project="paused", of="tenant")
    await witness.ask("PATCH", held, {"metadata": {"finalizers": None}}, project="paused", of="tenant")
    await witness.ask("DELETE", one, project="paused", of="tenant")
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "configmaps"}},
    }
    reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert (await witness.send("POST", reviews, review, project="paused", of="tenant"))[0] == 201
    await lift(witness, "first")
    await witness.until(says("Suspended", "suspensions: second"), f"{PROJECTS}/paused")
    await witness.send("DELETE", f"{SUSPENSIONS}/second")
    await witness.until(says("Suspended", "is active"), f"{PROJECTS}/paused")
    await witness.send("DELETE", f"{SUSPENSIONS}/first")
    await witness.until(lambda _, answer: not answer["status"].get("suspensions"), f"{PROJECTS}/paused")
    await end(witness, "paused")


@life
async def a_suspension_freezes_when_its_project_is_deleted_and_survives_it(witness: Witness) -> None:
    await begin(witness, "frozen")
    await config_map(witness, "frozen", "held", FINALIZER)
    await suspend(witness, "lasting", "frozen", "Billing")
    await witness.until(says("Suspended", "lasting"), f"{PROJECTS}/frozen")
    await witness.send("DELETE", f"{PROJECTS}/frozen")
    await witness.until(waits_for_operators, f"{PROJECTS}/frozen")
    await lift(witness, "lasting")
    await suspend(witness, "later", "frozen", "Fraud")
    await witness.ask("GET", f"{PROJECTS}/frozen")
    path = f"{CONFIG_MAPS}/held"
    await witness.ask("PATCH", path, {"metadata": {"finalizers": None}}, project="frozen", of="tenant")
    await gone(witness, "frozen")
    await witness.ask("GET", SUSPENSIONS)
    await begin(witness, "frozen")
    await witness.until(says("Suspended", "suspensions: later"), f"{PROJECTS}/frozen")
    for name in ("lasting", "later"):
        await witness.send("DELETE", f"{SUSPENSIONS}/{name}")
    await end(witness, "frozen")
