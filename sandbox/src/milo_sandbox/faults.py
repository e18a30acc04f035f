"""Injected faults of responses: those that were observed on real API servers, and those that tests define."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Annotated, Literal

import msgspec

from milo_sandbox import refusals
from milo_sandbox.calls import Call
from milo_sandbox.collection import CollectionPage
from milo_sandbox.refusals import PlainError, RefusalError
from milo_sandbox.resources import ResourceDefinition


class Approach(msgspec.Struct, frozen=True, kw_only=True):
    """A request at two stages of parsing: first only with its path and project, then also with its call."""

    segments: tuple[str, ...]
    query: Mapping[str, str]
    project: str = ""
    call: Call | None = None


class Fault(msgspec.Struct, kw_only=True):
    """The requests that a fault applies to, its response, and how often and how long it applies."""

    concerns: Callable[[Approach], bool]
    answer: Callable[[Approach, float], RefusalError | PlainError]  # the second argument: seconds since the fault began
    since: float
    until: float
    times: float


class Injected(msgspec.Struct, kw_only=True):
    """A fault that the test kit injects into requests for one kind in one project's control plane."""

    project: str
    verb: Literal["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "*"]
    kind: str
    status: Literal[403, 404, 409, 429, 500, 503, "hang"]
    times: Annotated[int, msgspec.Meta(ge=1)] | None
    """The number of requests that the fault applies to; None for all."""

    def concerns(self, project: str, call: Call, verbs: Collection[str]) -> bool:
        kind = f"{call.resource.api_version}/{call.resource.plural}"
        return (project, kind) == (self.project, self.kind) and (self.verb == "*" or self.verb in verbs)


def _refusal(status: int, call: Call) -> RefusalError | PlainError:
    what = f"{call.resource.qualified} {call.name!r}" if call.name else call.resource.qualified
    why = "a test injected this fault"
    match status:
        case 403:
            return refusals.forbidden(what, why)
        case 404:
            return refusals.not_found(call.resource, call.name)
        case 409:
            return refusals.conflict(call.resource, call.name, why)
        case 429:
            return refusals.too_many_requests(why, 1)
        case _:
            return PlainError(status, f"{what}: {why}")


_HEALTH = frozenset({"livez", "readyz", "healthz"})


class Faults:
    """The active faults. Each ends when it is cleared, or when its time or count is exhausted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._faults: list[Fault] = []
        self._lists_are_empty = False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._hanging: frozenset[str] = frozenset()
        self._answering = asyncio.Event()
        self._injected: list[Injected] = []
        self._stopped = asyncio.Event()
        self.held_requests = 0
        """The number of requests that wait for the end of an injected fault."""

    def inject(self, fault: Injected) -> None:
        self._injected.append(fault)

    def stop_injected(self) -> None:
        self._injected.clear()
        self._stopped.set()
        self._stopped = asyncio.Event()

    async def held(self, project: str, call: Call, verbs: Collection[str]) -> None:
        """Raise the response of the first injected fault that applies; if it is a hang, wait for `stop_injected`.

        `verbs` are those for which an API server authorizes the call.
        """
        fault = next((injected for injected in self._injected if injected.concerns(project, call, verbs)), None)
        if fault is None:
            return
        if fault.times is not None:
            fault.times -= 1
            if not fault.times:
                self._injected.remove(fault)
        if fault.status != "hang":
            raise _refusal(fault.status, call)
        self.held_requests += 1
        try:
            await self._stopped.wait()
        finally:
            self.held_requests -= 1

    def clear(self) -> None:
        self._faults.clear()
        self._lists_are_empty = False
        self._thawed.set()
        self._answering.set()

    async def thawed(self, call: Call) -> None:
        """Wait while etcd is frozen, or while reads of this call's object hang."""
        await self._thawed.wait()
        if call.verb == "get" and call.name in self._hanging:
            await self._answering.wait()

    def check(self, approach: Approach) -> None:
        """Raise the response of the first fault that applies to a request."""
        now = self._clock()
        self._faults = [fault for fault in self._faults if now < fault.until and fault.times > 0]
        for fault in self._faults:
            if fault.concerns(approach):
                fault.times -= 1
                raise fault.answer(approach, now - fault.since)

    def seen(self, page: CollectionPage) -> CollectionPage:
        """Return the page, without its objects if a fault empties lists."""
        return CollectionPage(records=[], version=page.version) if self._lists_are_empty else page

    # The faults

    def initializing(self, *, seconds: float = inf, resource: ResourceDefinition | None = None) -> None:
        """Act as a server that builds its watch cache: it refuses watches and unpaged lists. Health checks succeed."""

        def concerns(approach: Approach) -> bool:
            call = approach.call
            if call is None or (resource is not None and call.resource is not resource):
                return False
            return call.verb == "watch" or (call.verb == "list" and not approach.query.get("limit"))

        def answer(_: Approach, elapsed: float) -> RefusalError:
            retry_after = 1 if elapsed < 3 else 2 if elapsed < 8 else 3
            return refusals.too_many_requests("storage is (re)initializing", retry_after)

        self._add(concerns, answer, seconds=seconds)

    def installing(self, *, seconds: float = inf) -> None:
        """Act as a server that has just started, and serves no paths yet."""
        text = "the request has been made before all known HTTP paths have been installed, please try again"
        self._add(_is_unparsed, lambda *_: PlainError(503, text, retry_after=5), seconds=seconds)

    def freeze_etcd(self) -> None:
        """Act as a server whose etcd is unavailable: its health checks fail, and requests other than watches hang.

        `Sandbox.freeze_etcd` also stops the events of open watches.
        """
        text = "[+]ping ok\n[-]etcd failed: reason withheld\nlivez check failed\n"
        self._add(lambda approach: _HEALTH.issuperset(approach.segments), lambda *_: PlainError(500, text), seconds=inf)
        self._thawed.clear()

    def hanging(self, *names: str) -> None:
        """Act as a server that does not answer reads of these objects, until the faults are cleared."""
        self._hanging = frozenset(names)
        self._answering.clear()

    def overloaded(self, *, seconds: float = inf, times: float = inf) -> None:
        """Act as a server whose API priority and fairness rejects requests, in plain text."""
        text = "Too many requests, please try again later.\n"
        self._add(_is_call, lambda *_: PlainError(429, text, retry_after=1), seconds=seconds, times=times)

    def failing(self, code: int = 500, *, seconds: float = inf, times: float = inf) -> None:
        """Act as a server whose backend, or a proxy in front of it, is broken."""
        self._add(_is_call, lambda *_: PlainError(code, "<html>upstream failed</html>"), seconds=seconds, times=times)

    def unauthorized(self, *, seconds: float = inf, times: float = inf) -> None:
        """Act as if no credential were valid."""

        def concerns(approach: Approach) -> bool:
            return approach.call is None and not _HEALTH.issuperset(approach.segments)

        self._add(concerns, lambda *_: refusals.unauthorized(), seconds=seconds, times=times)

    def forbidden(self, *, seconds: float = inf, times: float = inf) -> None:
        """Act as if no request were authorized."""

        def answer(approach: Approach, _: float) -> RefusalError:
            assert approach.call is not None
            what = approach.call.resource.qualified
            return refusals.forbidden(what, f"no user can {approach.call.verb} {what} at the cluster scope")

        self._add(_is_call, answer, seconds=seconds, times=times)

    def unserved(self, resource: ResourceDefinition, *, seconds: float = inf) -> None:
        """Act as a server on which the CRD of the resource was deleted."""

        def concerns(approach: Approach) -> bool:
            return approach.call is not None and approach.call.resource is resource

        self._add(concerns, lambda *_: refusals.no_such_path(), seconds=seconds)

    def unreachable(self, project: str, *, seconds: float = inf) -> None:
        """Answer 503 to every request to one project's control plane."""

        def concerns(approach: Approach) -> bool:
            return approach.call is None and approach.project == project

        text = "no healthy upstream"
        self._add(concerns, lambda *_: PlainError(503, text), seconds=seconds)

    def empty_lists(self, *, on: bool = True) -> None:
        """Act as if nothing existed: lists are empty."""
        self._lists_are_empty = on

    def _add(
        self,
        concerns: Callable[[Approach], bool],
        answer: Callable[[Approach, float], RefusalError | PlainError],
        *,
        seconds: float = inf,
        times: float = inf,
    ) -> None:
        now = self._clock()
        self._faults.append(Fault(concerns=concerns, answer=answer, since=now, until=now + seconds, times=times))


def _is_unparsed(approach: Approach) -> bool:
    return approach.call is None


def _is_call(approach: Approach) -> bool:
    return approach.call is not None
