"""Leader election between the replicas of an operator, on a Lease in the operator's own cluster.

async with ApiClient() as api:  # from kubernetes.aio.client
    await LeaderElection(api, "greeter", namespace="operators").run(controllers.run)
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from milo_discovery._lease_lock import LeaseLock, LeaseTiming
from milo_discovery._ownership import boottime, suspended_s
from milo_discovery.errors import DiscoveryError
from milo_kube.task_groups import wait_uninterrupted

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

__all__ = ["LeaderElection", "LeadershipLost", "LeaseTiming"]

log = logging.getLogger("milo_discovery.leader_election")

ResultT = TypeVar("ResultT")
SendRequest = Callable[[str, str, Any], Awaitable[tuple[int, Mapping[str, Any]]]]
"""Sends a request: method, path and body; returns the status and the JSON of the response. Raises OSError."""

_OK: Final = 200
_CREATED: Final = 201
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_ATTEMPT_SHARE: Final = 0.4
"""The part of the renew deadline that an attempt may take, so that two more fit if one gets no response."""


class LeadershipLost(Exception):  # noqa: N818  (named like the errors of this package)
    """The lock was lost, so the work was canceled. Exit the process, or run the election again."""


class _AttemptError(Exception):
    """A request to the API server failed; the next attempt may succeed."""


class LeaderElection:
    """An election that runs work on one replica at a time.

    The holder stops before another candidate can take the lock, even if the API server is unreachable.
    """

    def __init__(
        self,
        api: ApiClient | SendRequest,
        name: str,
        *,
        namespace: str,
        identity: str | None = None,
        timing: LeaseTiming = LeaseTiming(),  # noqa: B008  (immutable)
    ) -> None:
        """`api`: a client of the kubernetes package, or a function that sends requests to the operator's own cluster.

        `name`: the name of the Lease that the replicas of an operator share. `identity`: by default unique to the
        process.
        """
        self._request: SendRequest = api if callable(api) else partial(_request_of, api)
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._namespace = namespace
        self.identity = identity or f"{socket.gethostname()}_{os.getpid()}_{uuid4().hex[:8]}"
        self._timing = timing
        self._lock = LeaseLock(self.identity, timing)
        self._clock = boottime
        self._writing: asyncio.Task[Mapping[str, Any] | None] | None = None
        """The last write that takes or keeps the lock."""

    @property
    def is_leader(self) -> bool:
        """Whether this replica holds the lock, and renewed it in time: also if the event loop has not noticed yet, as
        after a suspension of the process or the machine. Safe in any thread."""
        return self._lock.holds_at(self._clock())

    @property
    def leader(self) -> str:
        """The last observed holder's identity, or an empty string."""
        return self._lock.holder

    async def run(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Wait for the lock, run the work while it is held, and release it.

        Returns the result of the work, or raises its error. If the lock is not renewed in time or another replica holds
        it, cancels the work, and raises LeadershipLost when the work has ended.
        """
        loop = asyncio.get_running_loop()
        self._clock = lambda: loop.time() + suspended_s()
        try:
            await self._acquire()
            log.info("leading: lease %s/%s is held by %s", self._namespace, self._name, self.identity)
            return await self._lead(work)
        finally:
            await self._release()

    async def _lead(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run the work until it ends or the lock is lost. The work has ended when this returns or raises."""
        working = asyncio.ensure_future(_call(work))
        renewing = asyncio.create_task(self._renew_until_lost(), name="milo-discovery lease")
        try:
            await asyncio.wait([working, renewing], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            await _ended(working)
            raise LeadershipLost(  # also if the caller has canceled this in the meantime
                f"{self.identity} lost the lease {self._namespace}/{self._name}: it was not renewed in time, or "
                f"another replica took it; last observed holder: {self._lock.holder or 'none'}"
            )
        finally:
            if not working.done():
                await _ended(working)
            await _ended(renewing)

    @property
    def _attempt_limit_s(self) -> float:
        return _ATTEMPT_SHARE * self._timing.renew_deadline

    async def _acquire(self) -> None:
        last_holder = None
        while not await self._attempt(self._attempt_limit_s):
            if self._lock.holder != last_holder:
                last_holder = self._lock.holder
                log.info("waiting: lease %s/%s is held by %s", self._namespace, self._name, last_holder or "none")
            # A released Lease is taken at the next attempt, so candidates poll more often than the holder renews.
            await asyncio.sleep(self._timing.retry_period / 4)

    async def _renew_until_lost(self) -> None:
        wait_s = self._timing.retry_period
        while True:
            await asyncio.sleep(max(0.0, min(wait_s, self._lock.stops_at() - self._clock())))
            began_at = self._clock()
            await self._attempt(min(self._attempt_limit_s, self._lock.stops_at() - began_at))
            if not self.is_leader:
                return
            wait_s = began_at + self._timing.retry_period - self._clock()

    async def _attempt(self, limit_s: float) -> bool:
        """Try to take or keep the lock; return whether this attempt succeeded."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._take_or_keep()
        except TimeoutError:
            self._stop_writing()
            log.warning("lease %s/%s: no response within %.1f s", self._namespace, self._name, max(0.0, limit_s))
            return False
        except Exception as error:  # noqa: BLE001  (one failed request must not end the leadership)
            self._log_failure("request", error)
            return False

    def _log_failure(self, what: str, error: Exception) -> None:
        is_expected = isinstance(error, _AttemptError | OSError | DiscoveryError)
        problem = str(error) or type(error).__name__
        log.warning(
            *("lease %s/%s: %s failed: %s", self._namespace, self._name, what, problem),
            exc_info=None if is_expected else error,
        )

    async def _take_or_keep(self) -> bool:
        if not self._lock.is_held:
            await self._read()
        began_at = self._clock()
        spec = self._lock.claim(began_at, datetime.now(UTC))
        if spec is None:
            return False
        # If this candidate is canceled, the write continues: it may take effect, and then has to be released.
        self._writing = asyncio.create_task(self._claim(spec), name="milo-discovery lease write")
        written = await asyncio.shield(self._writing)
        if written is None:
            await self._read()  # Another candidate wrote the Lease first.
            return False
        self._lock.written(written, began_at)
        return True

    async def _read(self) -> None:
        status, lease = await self._request("GET", f"{self._collection}/{self._name}", None)
        # A leader's Lease is missing once it can be created: a proxy, or an API server that starts, sends a 404 too.
        is_missing = status == _NOT_FOUND and not self._lock.is_held
        if status != _OK and not is_missing:
            raise _AttemptError(_reason(status, lease))
        self._lock.observe(None if is_missing else _lease(status, lease), self._clock())

    async def _claim(self, spec: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Replace the Lease, or create it if it is missing; return None on a conflict with another candidate."""
        status = _NOT_FOUND
        written: Mapping[str, Any] = {}
        if self._lock.lease is not None:
            status, written = await self._write("PUT", self._lock.lease["metadata"], spec)
        if status == _NOT_FOUND:
            status, written = await self._write("POST", {"name": self._name}, spec)
        if status in {_OK, _CREATED}:
            return _lease(status, written)
        if status == _CONFLICT:
            return None
        raise _AttemptError(_reason(status, written))

    async def _write(
        self, method: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]
    ) -> tuple[int, Mapping[str, Any]]:
        path = self._collection if method == "POST" else f"{self._collection}/{self._name}"
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        return await self._request(method, path, body)

    async def _release(self) -> None:
        """Free the lock, also if the write that took it was still under way."""
        try:
            async with asyncio.timeout(self._timing.retry_period):
                if self._writing is not None:
                    await asyncio.wait([self._writing])
                if self._lock.is_uncertain:
                    await self._read()
                lease, spec = self._lock.lease, self._lock.release(datetime.now(UTC))
                if lease is not None and spec is not None:
                    status, _ = await self._write("PUT", lease["metadata"], spec)
                    if status == _CONFLICT:  # as when it was annotated
                        await self._read()
                        lease = self._lock.lease
                        if lease is not None and self._lock.holder == self.identity:
                            await self._write("PUT", lease["metadata"], spec)
        except Exception as error:  # noqa: BLE001  (it only delays the next holder)
            self._log_failure("release", error)
        self._stop_writing()

    def _stop_writing(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None and not writing.done():
            writing.cancel()


async def _request_of(api: ApiClient, method: str, path: str, body: Any = None) -> tuple[int, Mapping[str, Any]]:
    import aiohttp  # noqa: PLC0415  (installed with the kubernetes package)

    headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": "application/json"})
    request = await api.param_serialize(
        method=method, resource_path=path, header_params=headers, body=body, auth_settings=["BearerToken"]
    )
    try:
        response = await api.call_api(*request)
        content = await response.response.read()
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error) or repr(error)) from error
    try:
        document = json.loads(content)
    except ValueError:
        document = {}
    return response.status, document if isinstance(document, dict) else {}


def _lease(status: int, document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a response that is a Lease. Raises _AttemptError for any other, such as the page of a proxy."""
    metadata = document.get("metadata")
    if not (isinstance(metadata, dict) and metadata.get("uid") and metadata.get("resourceVersion")):
        raise _AttemptError(f"{status} with a response that is not a Lease")
    return document


def _reason(status: int, document: Mapping[str, Any]) -> str:
    return f"{status} {document.get('message', '')}".strip()


async def _call(work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    return await work()


async def _ended(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end, also if the caller is canceled during the wait."""
    task.cancel()
    await wait_uninterrupted(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("work failed during its cleanup", exc_info=error)
