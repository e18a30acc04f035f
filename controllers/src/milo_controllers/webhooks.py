"""Validators and mutators: what an operator answers to the API server about writes, in every project."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from enum import Enum
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec

from milo_controllers.admission_review import (
    AdmissionOperation,
    AdmissionRequest,
    Deny,
    Review,
    allowed,
    decode_review,
    denied,
    mutated,
    review_of,
)
from milo_controllers.errors import text_of
from milo_controllers.functions import call_in_thread, is_async
from milo_controllers.kinds import Document, Kind
from milo_discovery.engaged_cluster import EngagedCluster
from milo_discovery.errors import DiscoveryError
from milo_discovery.model import Cluster
from milo_kube.failure_log import FailureLog
from milo_kube.http.server import HttpReply, ServerRequest
from milo_kube.task_groups import cancelled_from_outside
from milo_kube.user_code import call, not_an_exception

log = logging.getLogger("milo_controllers.webhooks")

T = TypeVar("T")
Reviewer = Callable[[Review[T]], Awaitable[None] | None]
"""An async function, or a plain one, which is called in a thread. It raises Deny to deny the write."""
Unknown = Literal["allow", "deny"]
FailurePolicy = Literal["Fail", "Ignore"]

DESCRIBE_VARIABLE = "MILO_OPERATOR_DESCRIBE"
"""If set to `webhooks`, `milo_controllers.main` prints its webhooks as JSON, and exits."""
OPERATIONS: tuple[AdmissionOperation, ...] = ("CREATE", "UPDATE", "DELETE", "CONNECT")
API_SERVER_TIMEOUT_S = 10
"""The time that registrations state, after which an API server applies the failure policy."""
_MARGIN_S = 0.5
"""How long before the API server's limit an answer is given up, so that it gets the reason."""
_FRESH_S = 1.0
_LOOK_UPS = 10_000
REVIEW_THREADS = "review "
"""How the names of threads begin in which plain functions are called."""
_LARGE = 256 << 10
"""Size in bytes above which a review waits for its turn, and its objects are decoded and compared in a thread: the
3 MiB of a tenant's request can be a million values, which take more than a second, and 150 MB."""
_LARGE_AT_ONCE = 2
"""Large reviews of a webhook that are answered at once, each of another project."""
_THREADS = 64
"""Maximum concurrent calls of a plain function. Each webhook has its own, so that one that hangs delays no other."""
_THREADS_PER_PROJECT = 8
"""Maximum concurrent calls of it for one project, so that calls that hang there delay no others."""


class WebhookType(Enum):
    VALIDATING = "validate"
    MUTATING = "mutate"


class Webhook(NamedTuple):
    """The arguments of `Controllers.validate` or `Controllers.mutate`."""

    type: WebhookType
    name: str
    kind: Kind[Any]
    operations: tuple[AdmissionOperation, ...]
    subresource: str
    unknown: Unknown
    failure_policy: FailurePolicy
    reviewer: Reviewer[Any]

    @property
    def path(self) -> str:
        return f"/{self.type.value}/{self.name}"


class ProjectClusters(msgspec.Struct, frozen=True):
    """How to find the cluster of a project."""

    known: Callable[[str], Awaitable[Cluster | None]]
    """Returns the cluster of a project ("": of the core API) as discovery knows it, or None if it engages none. Raises
    DiscoveryError."""
    engaged: Callable[[str], EngagedCluster | None]
    """Returns the cluster that this replica has engaged under a name."""


class _LookUpError(Exception):
    """The cluster of a project cannot be looked up."""


class _LookUp(NamedTuple):
    cluster: Cluster | None = None
    """The last answer; None also if there was none."""
    at: float = -inf
    engaged: str | None = None
    """The uid of the cluster that this replica had engaged when it asked."""
    has_failed: bool = False
    """Whether the daemon did not answer at that time."""


class _ProjectLookUps:
    """The clusters of projects that were reviewed lately. While the daemon does not answer, that which this replica has
    engaged is used, or else the last answer, unless it was that the project is not engaged."""

    def __init__(self, clusters: ProjectClusters) -> None:
        self._clusters = clusters
        self._last: dict[str, _LookUp] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By project: held while it is looked up, so that a tenant who writes much leaves the channel to others."""

    async def cluster(self, project: str) -> Cluster | None:
        clock = asyncio.get_running_loop().time
        if not self._is_fresh(project, clock()):
            limit_s = None if self._held(project) is None else _FRESH_S
            turn = self._turns.setdefault(project, asyncio.Lock())
            try:
                async with asyncio.timeout(limit_s), turn:
                    if not self._is_fresh(project, clock()):
                        engaged = self._engaged_uid(project)
                        cluster = await self._clusters.known(project)
                        self._keep(project, _LookUp(cluster, clock(), engaged))
                        return cluster
            except (DiscoveryError, TimeoutError):
                if self._held(project) is None:
                    raise
                self._keep(project, self._kept(project)._replace(at=clock(), has_failed=True))
        last = self._kept(project)
        return self._held(project) if last.has_failed else last.cluster

    def _is_fresh(self, project: str, now: float) -> bool:
        """Return whether the last answer is used, or that the daemon did not answer."""
        last = self._kept(project)
        if now - last.at >= _FRESH_S:
            return False
        # An answer from before this replica engaged the project is of a former incarnation, or that it is not engaged.
        return self._held(project) is not None if last.has_failed else last.engaged == self._engaged_uid(project)

    def _engaged_uid(self, project: str) -> str | None:
        engaged = self._clusters.engaged(project)
        return None if engaged is None else engaged.uid

    def _held(self, project: str) -> Cluster | None:
        """Return the cluster that is used while the daemon does not answer."""
        engaged = self._clusters.engaged(project)
        return self._kept(project).cluster if engaged is None else engaged.current

    def _kept(self, project: str) -> _LookUp:
        return self._last.get(project, _LookUp())

    def _keep(self, project: str, look_up: _LookUp) -> None:
        self._last.pop(project, None)
        if len(self._last) >= _LOOK_UPS:
            del self._last[next(iter(self._last))]
        self._last[project] = look_up


class Webhooks:
    """The validators and mutators of a set of controllers, and their answers to reviews."""

    def __init__(self, clusters: ProjectClusters, failures: FailureLog) -> None:
        self.source = ""
        """The source of the clusters, in a daemon with several sources."""
        self._clusters = clusters
        self._look_ups = _ProjectLookUps(clusters)
        self._by_path: dict[str, Webhook] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._shares: WeakValueDictionary[tuple[str, str], asyncio.Semaphore] = WeakValueDictionary()
        """By the path of a webhook and a project: held by each of its calls until the thread is free."""
        self._large = ThreadPoolExecutor(1, f"{REVIEW_THREADS}of large objects")
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        """By the path of a webhook and a project: held by its large review. Of all that wait, the projects take turns:
        one that writes much delays the others by one review."""
        self._large_at_once: dict[str, asyncio.Semaphore] = {}
        """By the path of a webhook: large reviews of others do not wait for one that hangs."""
        self._failures = failures

    def __bool__(self) -> bool:
        return bool(self._by_path)

    @property
    def all(self) -> Sequence[Webhook]:
        return list(self._by_path.values())

    def add(self, webhook: Webhook) -> None:
        if webhook.path in self._by_path:
            raise ValueError(f"{webhook.type.value}: {webhook.name!r} already exists: pass another name=")
        self._by_path[webhook.path] = webhook
        self._large_at_once[webhook.path] = asyncio.Semaphore(_LARGE_AT_ONCE)
        if not is_async(webhook.reviewer):
            self._threads[webhook.path] = ThreadPoolExecutor(_THREADS, REVIEW_THREADS + webhook.name)

    def close(self) -> None:
        for threads in (*self._threads.values(), self._large):
            threads.shutdown(wait=False)

    async def answer(self, request: ServerRequest) -> HttpReply:
        """Answer an HTTP request with a review. An error status makes the API server apply its failure policy."""
        webhook = self._by_path.get(request.path)
        if webhook is None:
            return HttpReply(f"no webhook at {request.path}\n".encode(), status=HTTPStatus.NOT_FOUND)
        limit_s = max(_seconds(request.query.get("timeout", "")) - _MARGIN_S, _MARGIN_S)
        try:
            asked = decode_review(request.body)
        except ValueError as error:
            return HttpReply(f"{error}\n".encode(), status=HTTPStatus.BAD_REQUEST)
        try:
            async with asyncio.timeout(limit_s) as limit:
                if len(request.body) > _LARGE:
                    turn = self._turns.setdefault((webhook.path, asked.user_info.project), asyncio.Lock())
                    async with turn, self._large_at_once[webhook.path]:
                        answered = await self._reviewed(webhook, asked, self._large)
                else:
                    answered = await self._reviewed(webhook, asked, None)
            return HttpReply(msgspec.json.encode(answered), content_type="application/json")
        except _LookUpError as error:
            return self._failed(
                webhook, HTTPStatus.SERVICE_UNAVAILABLE, error, "the project cannot be looked up", f": {error}"
            )
        except Exception as error:  # noqa: BLE001  (of the author's function: this review fails, others go on)
            if isinstance(error, TimeoutError) and limit.expired():
                return self._failed(webhook, HTTPStatus.GATEWAY_TIMEOUT, error, f"no answer within {limit_s:g} s")
            why = f": {type(error).__name__}: {text_of(error)}"
            return self._failed(webhook, HTTPStatus.INTERNAL_SERVER_ERROR, error, "its function failed", why)

    async def _reviewed(
        self, webhook: Webhook, request: AdmissionRequest, thread: ThreadPoolExecutor | None
    ) -> Document:
        """Return the answer. With `thread`, the objects are decoded and compared there."""
        project = request.user_info.project
        key = f"{self.source}#{project}" if self.source and project else project
        try:
            cluster = await self._look_ups.cluster(key)
        except (DiscoveryError, TimeoutError) as error:
            raise _LookUpError(text_of(error)) from error
        if cluster is None:
            if webhook.unknown == "allow":
                return allowed(request)
            where = f"project {project} is not engaged" if project else "the core API is no project"
            return denied(request, Deny(f"{where}, so {webhook.name} cannot be checked"))
        return await self._judged(webhook, request, cluster, thread)

    async def _judged(
        self, webhook: Webhook, request: AdmissionRequest, cluster: Cluster, thread: ThreadPoolExecutor | None
    ) -> Document:
        engaged = self._clusters.engaged(cluster.name)
        if engaged is not None and engaged.uid != cluster.uid:
            engaged = None
        try:
            review = await _computed(thread, partial(review_of, request, webhook.kind, cluster, engaged))
        except Exception as error:  # noqa: BLE001  (of the kind's type, such as pydantic's)
            return denied(
                request, Deny(f"not a valid {webhook.kind.plural}: {text_of(error)}", code=HTTPStatus.BAD_REQUEST)
            )
        if review is None:
            return allowed(request, [f"not checked by {webhook.name}: {request.name} is stored with invalid fields"])
        try:
            await self._called(webhook, review)
        except Exception as error:
            if (reason := _denial(error)) is None:
                raise
            return denied(request, reason, review.warnings)
        if webhook.type is WebhookType.MUTATING and request.operation != "DELETE":
            return await _computed(thread, partial(mutated, request, webhook.kind, review.object, review.warnings))
        return allowed(request, review.warnings)

    async def _called(self, webhook: Webhook, review: Review[Any]) -> None:
        threads, loop, context = self._threads.get(webhook.path), asyncio.get_running_loop(), copy_context()
        try:
            if threads is None:
                returned: object = await webhook.reviewer(review)  # type: ignore[misc]
            else:
                share = self._shares.setdefault(
                    (webhook.path, review.cluster.name), asyncio.Semaphore(_THREADS_PER_PROJECT)
                )
                await share.acquire()
                # A call that waits for a thread when its time is over never begins.
                try:
                    calling = threads.submit(context.run, call_in_thread, webhook.reviewer, review)
                except RuntimeError:  # no thread can be started
                    share.release()
                    raise
                calling.add_done_callback(partial(_release_in, loop, share))  # not before: a thread cannot be canceled
                returned = await asyncio.wrap_future(calling)
        except asyncio.CancelledError as cancelled:
            if cancelled_from_outside():
                raise
            raise RuntimeError("the review was canceled, but not by its server") from cancelled
        except (Exception, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  (the author's code)
            raise not_an_exception(error) from None
        if returned is not None:  # such as False, or the coroutine of an async function that a plain one wraps
            raise TypeError(f"{webhook.name} returned {returned!r}: return None, and raise Deny to deny the write")

    def _failed(self, webhook: Webhook, status: HTTPStatus, error: Exception, what: str, why: str = "") -> HttpReply:
        """Answer with an error. `why` is only logged: the API server shows its user, a tenant, what the answer says."""
        shown = f"{webhook.type.value} {webhook.name}: {what}"
        text = f"{shown}{why}"
        now = asyncio.get_running_loop().time()
        if self._failures.is_new("", error, now, what=text):
            has_stack = status is HTTPStatus.INTERNAL_SERVER_ERROR
            log.error("%s; the API server applies the failure policy", text, exc_info=error if has_stack else None)
        return HttpReply(f"{shown}\n".encode(), status=status)


def _release_in(loop: asyncio.AbstractEventLoop, share: asyncio.Semaphore, _: object) -> None:
    with suppress(RuntimeError):  # the event loop was closed
        loop.call_soon_threadsafe(share.release)


async def _computed(thread: ThreadPoolExecutor | None, compute: Callable[[], T]) -> T:
    return call(compute) if thread is None else await asyncio.get_running_loop().run_in_executor(thread, call, compute)


def _denial(error: Exception) -> Deny | None:
    """Return the Deny that was raised, alone or in a group, as by a TaskGroup: whatever else failed there."""
    if isinstance(error, ExceptionGroup):
        return next(filter(None, map(_denial, error.exceptions)), None)
    return error if isinstance(error, Deny) else None


def _seconds(timeout: str) -> float:
    """Return the time that the API server waits, which it states as `timeout=10s`."""
    number = timeout.removesuffix("s")
    return float(number) if number.isascii() and number.isdecimal() else API_SERVER_TIMEOUT_S


def describe(webhook: Webhook) -> Mapping[str, Any]:
    """Return what a registration has to know of a webhook, as JSON."""
    return {**webhook._asdict(), "type": webhook.type.value, "kind": webhook.kind.resource, "reviewer": None}


def from_description(described: Mapping[str, Any]) -> Webhook:
    """Return the webhook of a description, without its reviewer."""
    return Webhook(**{**described, "type": WebhookType(described["type"]), "kind": Kind(described["kind"])})
