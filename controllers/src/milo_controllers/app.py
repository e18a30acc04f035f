"""The process of an operator: signals, logs, probes, metrics and leader election around its controllers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from milo_controllers.controllers import Controllers, Election
from milo_controllers.logs import ClusterFilter, log_with_stack
from milo_controllers.options import check_options
from milo_controllers.single_cluster import SingleCluster
from milo_controllers.webhook_server import WebhookServer, serve_webhooks
from milo_controllers.webhooks import DESCRIBE_VARIABLE, REVIEW_THREADS, describe
from milo_discovery.errors import DiscoveryError
from milo_discovery.leader_election import LeaderElection, LeadershipLost
from milo_kube.background_loop import run_in_thread, run_on
from milo_kube.credential import CredentialError
from milo_kube.http.server import HttpReply, HttpServer, ServerRequest
from milo_kube.http.visitors import is_on_loopback, is_own_host
from milo_kube.rfc3339 import rfc3339
from milo_kube.user_code import call

log = logging.getLogger("milo_controllers")

GRACE = timedelta(seconds=20)
LISTEN_VARIABLE = "MILO_OPERATOR_LISTEN"
_CLEANUP_S = 5.0
_REVIEWS_S = 1.0
"""How long the exit waits for reviews in threads."""
_CONNECTIONS = 64
_STANDARD_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}


class _StartError(Exception):
    """The process cannot start as configured."""


def main(
    controllers: Controllers,
    *,
    lease: str | None = None,
    lease_namespace: str | None = None,
    listen: str | None = None,
    grace: timedelta = GRACE,
    webhooks: WebhookServer | None = None,
    log_level: str | int = logging.INFO,
) -> NoReturn:
    """Run controllers as the process of an operator until SIGTERM or SIGINT, and exit. See `docs/controllers.md`.

    `lease`: reconcile only while this replica holds the Lease of this name in the operator's own cluster, in
    `lease_namespace`, by default that of the pod. `listen`: the HOST:PORT that serves probes and metrics, or `off`; by
    default MILO_OPERATOR_LISTEN, or else port 8080, in a pod on all addresses, elsewhere on loopback. `grace`: how long
    running reconciles may take after SIGTERM or SIGINT. `webhooks`: where to serve what `validate` and `mutate` have
    registered, on every replica.
    """
    if os.environ.get(DESCRIBE_VARIABLE) == "webhooks":
        sys.stdout.write(json.dumps([describe(webhook) for webhook in controllers.webhooks.all]) + "\n")
        sys.exit()
    check_options("", grace=grace)
    if webhooks is not None:
        webhooks.check()
    elif controllers.webhooks:
        raise ValueError("validators or mutators are registered: pass main(webhooks=WebhookServer(certificate, key))")
    set_up_logging(log_level)
    try:
        with asyncio.Runner() as runner:
            election = None if lease is None else _LeaseElection(lease, lease_namespace)
            status = runner.run(_run(controllers, election, listen, grace, webhooks))
            _exit_late(status)
    except KeyboardInterrupt:
        status = 130
    _exit(status)


async def _run(
    controllers: Controllers,
    election: Election | None,
    listen: str | None,
    grace: timedelta,
    webhooks: WebhookServer | None,
) -> int:
    """Run until a signal or a failure, and return the exit status."""
    signaled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop_signal, signaled.set)
    try:
        async with AsyncExitStack() as stack:
            given = listen or os.environ.get(LISTEN_VARIABLE)
            if given != "off":
                server = HttpServer(Pages(controllers).answer, connections=_CONNECTIONS)
                log.info("serving probes and metrics on %s", await _start(server, given))
                stack.push_async_callback(server.stop)
            if webhooks is not None:
                url = await stack.enter_async_context(_serving(controllers, webhooks))
                log.info("serving webhooks on %s", url)
            await _until_signaled(controllers, election, signaled, grace)
    except (_StartError, LeadershipLost, DiscoveryError) as error:
        log.error("stopped: %s", error)  # noqa: TRY400  (the message says what to do; a traceback does not)
        return 1
    except Exception:  # the outermost handler: it logs every fatal error in the process's log format
        log.exception("stopped by an error")
        return 1
    log.info("stopped")
    return 0


@asynccontextmanager
async def _serving(controllers: Controllers, at: WebhookServer) -> AsyncIterator[str]:
    """Serve webhooks while the body runs. Raises _StartError."""
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(serve_webhooks(controllers.webhooks, at))
        except (OSError, CredentialError) as error:
            raise _StartError(f"webhooks cannot be served on {at.listen}: {error}") from error
        yield url


async def _until_signaled(
    controllers: Controllers, election: Election | None, signaled: asyncio.Event, grace: timedelta
) -> None:
    running = asyncio.create_task(controllers.run(election=election), name="controllers")
    waiting = asyncio.create_task(signaled.wait(), name="signals")
    failing = asyncio.create_task(controllers.failed(), name="failure")
    await asyncio.wait([running, waiting, failing], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if failing.done() and not running.done():
        # Not longer: this process works no more, and may hold the Lease.
        done, _ = await asyncio.wait([running], timeout=2 * _CLEANUP_S)
        if not done:
            log.error("stopped: %s", failing.result(), exc_info=failing.result())
            _exit_at_once()
    if not running.done():
        log.info("stopping: reconciles may run for another %g s", grace.total_seconds())
        signaled.clear()
        draining = asyncio.create_task(controllers.drain(grace), name="drain")
        again = asyncio.create_task(signaled.wait(), name="second signal")
        limit_s = grace.total_seconds() + _CLEANUP_S
        await asyncio.wait([running, draining, again], return_when=asyncio.FIRST_COMPLETED, timeout=limit_s)
        draining.cancel()
        again.cancel()
        running.cancel()
        done, _ = await asyncio.wait([running], timeout=_CLEANUP_S)
        if not done:
            _exit_at_once()
    failing.cancel()
    if not running.cancelled():
        running.result()
    elif failing.done():  # such as by a lost Lease, after the signal
        raise failing.result()


def _exit_at_once() -> NoReturn:
    """Exit while reconciles run that were canceled: sys.exit would wait for their threads.

    The Lease is not released, since they may still write.
    """
    tasks = {task.get_name(): stack[-1] for task in asyncio.all_tasks() if (stack := task.get_stack())}
    stacks = _stacks(tasks | _threads(), "reconcile")
    log_with_stack(log, logging.ERROR, stacks, "reconciles did not finish after they were canceled")
    logging.shutdown()
    os._exit(1)


def _exit(status: int) -> NoReturn:
    """Exit, also while reviews run in threads, for which sys.exit would wait: their answers were given up."""
    until = time.monotonic() + _REVIEWS_S
    for thread in threading.enumerate():
        if thread.name.startswith(REVIEW_THREADS):
            thread.join(max(0.0, until - time.monotonic()))
    if stacks := _stacks(_threads(), REVIEW_THREADS):
        log_with_stack(log, logging.ERROR, stacks, "validators or mutators did not finish")
        logging.shutdown()
        os._exit(status)
    logging.shutdown()
    sys.exit(status)


def _exit_late(status: int) -> None:
    """Exit soon, even if threads do not end, such as those of asyncio.to_thread: the end of the event loop and sys.exit
    wait for them, and their callers were canceled."""

    def exit_now() -> None:
        time.sleep(_CLEANUP_S)
        log_with_stack(log, logging.ERROR, _stacks(_threads(), ""), "threads did not finish")
        logging.shutdown()
        os._exit(status)

    with suppress(RuntimeError):  # no thread can be started
        threading.Thread(target=exit_now, name="exit", daemon=True).start()


def _threads() -> dict[str, FrameType]:
    """Return what each thread executes for which sys.exit waits."""
    names = {thread.ident: thread.name for thread in threading.enumerate() if not thread.daemon}
    return {names[ident]: frame for ident, frame in sys._current_frames().items() if ident in names}


def _stacks(frames: Mapping[str, FrameType], prefix: str) -> str:
    return "".join(
        f"{name}: {traceback.format_stack(frame)[-1]}" for name, frame in frames.items() if name.startswith(prefix)
    )


class _LeaseElection:
    """A leader election on its own event loop, so that a blocked loop of the controllers does not lose the Lease."""

    def __init__(self, lease: str, namespace: str | None) -> None:
        self._lease = lease
        self._namespace = namespace
        self._election: LeaderElection | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this replica holds the Lease now."""
        return self._election is not None and self._election.is_leader

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()

        async def elect() -> None:
            async with SingleCluster().requests() as api:
                namespace = self._namespace or api.namespace
                election = self._election = LeaderElection(api.request, self._lease, namespace=namespace)
                await election.run(partial(_ended_in_time, partial(run_on, loop, work)))

        await run_in_thread(elect)


async def _ended_in_time(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run work. If it is canceled because the Lease is lost and does not end in time, exit: others work by then."""
    working = asyncio.ensure_future(work())
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        working.cancel()
        done, _ = await asyncio.wait([working], timeout=2 * _CLEANUP_S)
        if not done:
            _exit_at_once()
        if not working.cancelled():
            working.result()
        raise


async def _start(server: HttpServer, given: str | None) -> str:
    """Listen and return the URL. Raises _StartError."""
    default = ":8080" if "KUBERNETES_SERVICE_HOST" in os.environ else "127.0.0.1:8080"
    host, separator, port = (given or default).rpartition(":")
    if not separator or not port.isdecimal():
        raise _StartError(f"listen= or {LISTEN_VARIABLE} is {given!r}: write HOST:PORT, :PORT or off")
    interface = host.strip("[]") or None
    try:
        return await server.start(interface, int(port))
    except OSError as error:
        if given is None and interface is not None:  # for example, another operator uses the default port
            return await server.start(interface, 0)
        raise _StartError(
            f"cannot listen on {given or default} for probes and metrics: {error.strerror}; "
            f"pass listen=, or set {LISTEN_VARIABLE}"
        ) from error


class Pages:
    """The HTTP endpoints of an operator: probes, metrics and debug pages."""

    def __init__(self, controllers: Controllers) -> None:
        self._controllers = controllers
        self._collecting = ThreadPoolExecutor(1, "pages")
        """Not the threads of asyncio.to_thread, in which reconcilers may have calls that wait for long."""

    async def answer(self, request: ServerRequest) -> HttpReply:
        match request.path:
            case "/livez":
                return HttpReply(b"ok\n")
            case "/readyz":
                health = self._controllers.health()
                body = b"ok\n" if health.ready else b"not ready: the first clusters or their objects are being listed\n"
                return HttpReply(body, status=200 if health.ready else 503)
            case "/metrics" | "/debug/health" | "/debug/objects":
                return await self._shown(request)
        return HttpReply(b"pages: /livez /readyz /metrics /debug/health /debug/objects\n", status=404)

    async def _shown(self, request: ServerRequest) -> HttpReply:
        """Answer metrics to everyone, debug pages only on loopback. There the Host header must name this operator: any
        web page could read them through a browser, by DNS rebinding."""
        if is_on_loopback(request.peer):
            if not is_own_host(request.headers.get("Host", "")):
                return HttpReply(b"on loopback, the Host header must be an IP address or a local name\n", status=421)
        elif request.path != "/metrics":
            return HttpReply(b"names and errors are shown on loopback only: use kubectl port-forward\n", status=403)
        encode, content_type = partial(self._debugged, request), "application/json"
        if request.path == "/metrics":
            encode, content_type = partial(call, generate_latest, self._controllers.registry), CONTENT_TYPE_LATEST
        body = await asyncio.get_running_loop().run_in_executor(self._collecting, encode)
        return HttpReply(body, content_type=content_type)

    def _debugged(self, request: ServerRequest) -> bytes:
        """Return a debug page. Called in a thread, since a hundred thousand objects can fail."""
        found: object = self._controllers.health()
        if request.path == "/debug/objects":
            cluster = request.query.get("cluster")
            found = [failing for failing in self._controllers.failing() if cluster in (None, failing.cluster)]
        return msgspec.json.encode(found) + b"\n"


def set_up_logging(level: str | int = logging.INFO) -> None:
    """Log to stderr, with cluster, object and reconcile ID on each line: as JSON in pods, otherwise as text.

    Does nothing if the root logger has handlers.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    handler = logging.StreamHandler()
    handler.addFilter(ClusterFilter())
    handler.setFormatter(JsonFormatter() if "KUBERNETES_SERVICE_HOST" in os.environ else TextFormatter())
    root.addHandler(handler)
    root.setLevel(level)


class TextFormatter(logging.Formatter):
    """Formats a record as one line: time, level, logger, cluster, object, reconcile ID and message.

    What API servers send may be in it: so characters that end the line or control a terminal are escaped, and the lines
    of a stack are indented.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name in logging)
        return _printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(stack_info)

    def format(self, record: logging.LogRecord) -> str:
        place = " ".join(
            part for part in (record.__dict__.get(key, "") for key in ("cluster", "object", "reconcile")) if part
        )
        record.place = f"[{place}] " if place else ""
        return super().format(record)

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(place)s%(message)s")


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _indented(text: str) -> str:
    return "\n".join(f"    {_printable(line)}" for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object, with the fields of `extra=`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": rfc3339(datetime.fromtimestamp(record.created, UTC), "milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS and value != ""}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)
