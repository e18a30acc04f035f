"""The composition root: builds the daemon's parts, runs them, and stops them in order."""

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from milo_discoveryd import __version__
from milo_discoveryd.config import Settings
from milo_discoveryd.credentials.issued_credential import IssuedCredential
from milo_discoveryd.daemon_errors import StartError
from milo_discoveryd.fleet.fleet import Fleet
from milo_discoveryd.kubeconfigs.cluster_ca import cluster_trust
from milo_discoveryd.kubeconfigs.kubeconfigs import NO_ISSUER, CredentialLimits, Kubeconfigs
from milo_discoveryd.kubeconfigs.lease_handle import Issuance
from milo_discoveryd.kubeconfigs.rendering import ClusterTrust
from milo_discoveryd.log.change_log import FRAME_EVICTION_INTERVAL_S, ChangeLog, Retention
from milo_discoveryd.log.events import EventType
from milo_discoveryd.logger import log
from milo_discoveryd.model.cluster import Target
from milo_discoveryd.rights.quota import QuotaLimits
from milo_discoveryd.server.calls.access import AccessControl
from milo_discoveryd.server.calls.frames import encoder
from milo_discoveryd.server.calls.revision import TokenSigner
from milo_discoveryd.server.calls.server_info import DaemonInfo
from milo_discoveryd.server.calls.service import Service
from milo_discoveryd.server.server import Server
from milo_discoveryd.state_file.state_file import prepare_directory
from milo_discoveryd.telemetry.audit import Audit, AuditFile
from milo_discoveryd.telemetry.board import StatusBoard
from milo_discoveryd.telemetry.journal import Journal
from milo_discoveryd.telemetry.logging import Logging
from milo_discoveryd.telemetry.metrics import MeasuredDaemon, Metrics
from milo_discoveryd.telemetry.status import DaemonIdentity, when
from milo_discoveryd.telemetry.traces import exporting
from milo_discoveryd.wiring.config_reload import ConfigReloader, Load
from milo_discoveryd.wiring.configured_source import ConfiguredSource, configured_sources, new_fleet
from milo_discoveryd.wiring.issuers import Issuers, run_identity
from milo_discoveryd.wiring.listeners import listeners, token_reviewer
from milo_discoveryd.wiring.prober import probe
from milo_discoveryd.wiring.rules import rights
from milo_discoveryd.wiring.signals import handled
from milo_discoveryd.wiring.upstreams import note_renewal
from milo_kube.loop_watchdog import BlockedLoop, LoopWatchdog
from milo_kube.reflect.view_status import ViewState

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from milo_discoveryd.sharding.group import ShardGroup
    from milo_discoveryd.wiring.sharding import Membership


BLOCKED_S = 2.0
"""Steps of the event loop that take at least this long are logged. In the manifests, the liveness probe times out after
five seconds."""
FAILED_START_POLL_S = 0.2


class _Stop:
    """The reason and time of the daemon's shutdown, for the log."""

    def __init__(self, begun_at: float) -> None:
        self._begun_at = begun_at
        self._reason = ""
        self._requested_at: float | None = None

    def requested(self, reason: str, now: float) -> None:
        if self._requested_at is None:
            self._reason, self._requested_at = reason, now

    def fields(self, serving: "asyncio.Task[None]", now: float) -> dict[str, object]:
        reason = self._reason
        if not serving.cancelled() and (error := serving.exception()) is not None:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            reason = f"{type(error).__name__}: {error}"
        since = now if self._requested_at is None else self._requested_at
        return {
            "reason": reason,
            "ran_seconds": round(now - self._begun_at, 3),
            "shutdown_seconds": round(now - since, 3),
        }


class Daemon:
    """The daemon, built from settings."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str] = os.environ,
        *,
        load: Load | None = None,
        file: Path | None = None,
        log_problems: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`load` reloads the settings after `file` changed.

        `log_problems` logs failed checks of sources and issuers, if a source fails before its first complete list.
        """
        self._settings = settings
        self._log_problems = log_problems
        self._environ = environ
        self._epoch = secrets.token_hex(8)
        self._metrics = Metrics([source.name for source in settings.sources])
        self._audit = Audit(self._metrics.audit, AuditFile(settings.audit.file) if settings.audit.file else None)
        self._journal = Journal(self._metrics.sources, self._audit)
        self._reloader = ConfigReloader(
            settings, load or (lambda: settings), file, audit=self._audit, metrics=self._metrics.reloads
        )
        retention = Retention(settings.tombstones.count, settings.tombstones.age.total_seconds())
        self._log = ChangeLog(encoder(self._epoch), retention)
        self._fleet: Fleet
        self._membership: Membership | None = None
        self.addresses: list[str] = []
        self.http_address: str | None = None
        self.started = asyncio.Event()

    async def run(self, logging: Logging | None = None) -> None:
        """Run until SIGTERM or SIGINT, then leave the shard group, if any, and drain the streams. Each further signal
        ends the current step.

        SIGUSR1 toggles debug logging. SIGUSR2 accepts the current state of all sources, so that held removals are
        released. SIGHUP reloads the authorization rules and reopens the audit file. SIGRTMIN, from
        `milo-discoveryd leave`, hands the clusters over to the other members of the shard group.

        Raises expected errors (`daemon_errors.EXPECTED`), alone or in an exception group.
        """
        loop = asyncio.get_running_loop()
        dropped_lines = (lambda: 0) if logging is None else (lambda: logging.dropped)
        serving = asyncio.create_task(self.serve(dropped_lines), name="daemon")
        signals = (signal.SIGTERM, signal.SIGINT)
        stop = _Stop(loop.time())

        def end(number: signal.Signals) -> None:
            stop.requested(number.name, loop.time())
            self._stop(serving)

        for number in signals:
            loop.add_signal_handler(number, end, number)
        handlers = {signal.SIGHUP: self._on_sighup, signal.SIGUSR2: self._accept}
        if sys.platform == "linux":
            handlers[signal.SIGRTMIN] = self._hand_over
        if logging is not None:
            handlers[signal.SIGUSR1] = logging.toggle
        try:
            with handled(handlers):
                await asyncio.wait((serving,))
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
        if self.started.is_set():  # errors during startup are printed by the command line
            log.info("stopped", **stop.fields(serving, loop.time()))
        if not serving.cancelled():
            serving.result()

    def _accept(self) -> None:
        if self.started.is_set():
            now = asyncio.get_running_loop().time()
            holds = [collection.accept(now) for source in self._fleet.sources for collection in source.collections]
            self._journal.accepted(any(holds))

    def _hand_over(self) -> None:
        """Hand the clusters over to the other members of the shard group, and serve until SIGTERM."""
        if self._membership is not None:
            self._membership.hand_over()

    def _stop(self, serving: "asyncio.Task[None]") -> None:
        """Leave the shard group, then stop serving. A second call stops serving at once."""
        if self._membership is None or self._membership.is_leaving:
            serving.cancel()
            return
        leaving = asyncio.create_task(self._membership.leave(), name="leave the shard group")
        leaving.add_done_callback(lambda _: serving.cancel())

    def _on_sighup(self) -> None:
        self._reloader.reload_now()
        try:
            self._audit.reopen()
        except StartError as error:
            log.warning("audit file not reopened", problem=str(error))

    async def serve(self, dropped_lines: Callable[[], int] = lambda: 0) -> None:
        """Serve until canceled, then drain the streams. `dropped_lines` returns how many log lines were dropped."""
        settings = self._settings
        asyncio.get_running_loop().set_default_executor(BlockingCalls())
        sources = configured_sources(settings, self._environ)
        self._fleet = new_fleet(sources, settings, self._log, self._journal.of_source)
        async with AsyncExitStack() as stack:
            for source in sources:
                stack.push_async_exit(aclosing(source))
            traces = await stack.enter_async_context(self._traces())
            if settings.state_directory is not None:
                prepare_directory(settings.state_directory)
            run = run_identity(settings.state_directory)
            issuers = Issuers(settings, sources, self._environ, stack, run=run)
            kubeconfigs = self._kubeconfigs(issuers, sources)
            changes = self._fleet.changes
            changes.add_listener(EventType.DISENGAGED, lambda event: kubeconfigs.disengaged(event.cluster))
            self._membership = self._new_membership(issuers, sources, stack)
            service = self._service(kubeconfigs)
            stack.enter_context(watched_loop(self._metrics.loop_was_late))
            reviewer = token_reviewer(settings, self._environ, stack)
            server = Server(service, listeners(settings), self._metrics.calls, traces=traces, reviewer=reviewer)
            self._measure(service, partial(_certificate_expiries, server, sources), kubeconfigs, dropped_lines)
            await server.start()
            stack.push_async_callback(server.stop)
            self.addresses = server.addresses
            await self._serve_http(service, kubeconfigs, stack)
            log.info("started", version=__version__, mode=settings.title, listen=self.addresses, http=self.http_address)
            self.started.set()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(server.watch(), name="check sockets")
                tasks.create_task(self._report_start(server, issuers), name="report health, and why a source fails")
                tasks.create_task(kubeconfigs.run(), name="keep credentials")
                tasks.create_task(self._evict_frames(), name="evict frames")
                applied = self._reloader.run(lambda rules: service.change_rights(rights(rules)))
                tasks.create_task(applied, name="follow the configuration")
                # Probing starts before discovery, so that the prober receives every engagement.
                self._probe(sources, kubeconfigs, tasks)
                if (group := self._group) is not None:
                    self._fleet.changes.add_listener(EventType.DISENGAGED, lambda _: group.wake())
                    tasks.create_task(group.run(), name="share clusters")
                restored = asyncio.Barrier(len(sources))
                for configured, fleet in zip(sources, self._fleet.sources, strict=True):
                    following = configured.follow(fleet, issuers.authenticated, self._epoch, restored.wait)
                    tasks.create_task(following, name=f"discover {configured.of.name}".rstrip())

    @property
    def _group(self) -> "ShardGroup | None":
        return None if self._membership is None else self._membership.group

    def _service(self, kubeconfigs: Kubeconfigs) -> Service:
        settings, clock = self._settings, asyncio.get_running_loop().time
        return Service(
            self._fleet,
            self._info(),
            self._metrics.streams,
            kubeconfigs,
            access=AccessControl(rights(settings.rights), _quotas(settings), self._audit, clock),
            signer=TokenSigner(secrets.token_bytes(32)),
            shard=self._group,
        )

    def _measure(
        self,
        service: Service,
        certificates: Callable[[], Iterable[tuple[str, float]]],
        kubeconfigs: Kubeconfigs,
        dropped_lines: Callable[[], int],
    ) -> None:
        measured = MeasuredDaemon(
            fleet=self._fleet,
            cluster_cap=self._settings.metrics.cluster_info_cap,
            version=__version__,
            mode=self._settings.title,
            lags=lambda: (stream.lag for stream in service.streams),
            tasks=lambda: len(asyncio.all_tasks()),
            dropped_lines=dropped_lines,
            issuer_health=kubeconfigs.health,
            certificates=certificates,
            shard=self._group,
        )
        self._metrics.follow(measured)

    async def _serve_http(self, service: Service, kubeconfigs: Kubeconfigs, stack: AsyncExitStack) -> None:
        settings, membership, group = self._settings, self._membership, self._group
        if settings.http_listen is None:
            return
        from milo_discoveryd.telemetry.http import HttpEndpoint  # noqa: PLC0415 - loads a web server

        board = StatusBoard(
            DaemonIdentity(
                version=__version__,
                mode=settings.title,
                host=socket.gethostname(),
                epoch=self._epoch,
                started_at=when(time.time()),
            ),
            self._fleet,
            self._journal.recent,
            subscribers=lambda: service.streams,
            credentials=kubeconfigs.health,
            credential_of=kubeconfigs.describe,
            shard=group,
            configuration=lambda: self._reloader.state,
        )
        endpoint = HttpEndpoint(
            self._metrics,
            board,
            ready=self._ready,
            sharding=lambda: {} if group is None else {"sharding": group.share_problem()},
            handed_over=None if membership is None else membership.handed_over,
            names_for=settings.http_names,
            hosts=settings.http_hosts,
        )
        self.http_address = await endpoint.start(settings.http_listen.host, settings.http_listen.port)
        stack.push_async_callback(endpoint.stop)

    def _probe(self, sources: Sequence[ConfiguredSource], kubeconfigs: Kubeconfigs, tasks: asyncio.TaskGroup) -> None:
        if self._settings.connectivity.interval is not None:
            probing = probe(
                self._settings,
                sources,
                self._environ,
                fleet=self._fleet,
                kubeconfigs=kubeconfigs,
                metrics=self._metrics.probes,
            )
            tasks.create_task(probing, name="probe clusters")

    async def _evict_frames(self) -> None:
        while True:
            await asyncio.sleep(FRAME_EVICTION_INTERVAL_S)
            for _ in self._fleet.log.evict_frames():
                await asyncio.sleep(0)

    def _traces(self) -> "AbstractAsyncContextManager[TracerProvider | None]":
        traces = self._settings.traces
        if traces.endpoint is None:
            return nullcontext()
        return exporting(traces.endpoint, traces.share, version=__version__, mode=self._settings.title)

    def _new_membership(
        self, issuers: Issuers, sources: Sequence[ConfiguredSource], closing: AsyncExitStack
    ) -> "Membership | None":
        if self._settings.sharding.group is None:
            return None
        from milo_discoveryd.wiring.sharding import Membership, shard_group  # noqa: PLC0415 - few daemons share a fleet

        group = shard_group(
            self._settings,
            self._environ,
            self._fleet,
            self._metrics.leases,
            closing,
            sources=sources,
            fencing=issuers.fencing,
        )
        return Membership(group, hand_over=self._settings.sharding.hand_over)

    def _kubeconfigs(self, issuers: Issuers, sources: Sequence[ConfiguredSource]) -> Kubeconfigs:
        settings = self._settings.kubeconfigs

        trusts = {source.of.name: cluster_trust(source.of.settings, source.project, note_renewal) for source in sources}

        def trust(target: Target, issued: IssuedCredential | None) -> ClusterTrust:
            return trusts[target.source](target, issued)

        return Kubeconfigs(
            issuers.assignments(),
            Issuance(
                trust=trust,
                metrics=self._metrics.credentials,
                audit=self._audit,
                address=lambda: str(settings.address) if settings.address else next(iter(self.addresses), None),
                may_issue=lambda: self._group is None or self._group.valid_s() is not None,
            ),
            CredentialLimits(
                max_ttl_s=settings.max_ttl.total_seconds(),
                default_ttl_s=settings.default_ttl.total_seconds(),
                concurrency=settings.concurrent_mints,
                per_second=settings.mints_per_second,
            ),
        )

    async def _report_start(self, server: Server, issuers: Issuers) -> None:
        if not issuers.assignments():
            log.info("kubeconfigs not issued", reason=NO_ISSUER, fix="configure an issuer in kubeconfigs.issuers")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report_health(server), name="report health")
            tasks.create_task(self._report_failed_start(), name="report why no list was read")

    async def _report_failed_start(self) -> None:
        """Log the failed checks, once, as soon as a source becomes stale before its first complete list."""
        while self._log_problems is not None and not all(source.synced for source in self._fleet.sources):
            failing = (source for source in self._fleet.sources if not source.synced)
            if any(source.status.state is ViewState.STALE for source in failing):
                await self._log_problems()
                return
            await asyncio.sleep(FAILED_START_POLL_S)

    async def _report_health(self, server: Server) -> None:
        with self._fleet.notifier.waiter() as waiter:
            while True:
                synced = {source.name: source.synced for source in self._fleet.sources}
                server.set_ready(synced)
                if all(synced.values()):
                    return
                await waiter.wait_for_change(60.0)

    def _ready(self) -> Mapping[str, str | None]:
        problem = "no complete list has been received from the source yet"
        return {f"synced {source.name}".rstrip(): None if source.synced else problem for source in self._fleet.sources}

    def _info(self) -> DaemonInfo:
        return DaemonInfo(
            version=__version__,
            mode=self._settings.title,
            epoch=self._epoch,
            started_at=time.time(),
            heartbeat_s=self._settings.heartbeat_interval.total_seconds(),
            stalled_s=self._settings.stalled_timeout.total_seconds(),
        )


def _certificate_expiries(server: Server, sources: Iterable[ConfiguredSource]) -> Iterator[tuple[str, float]]:
    yield from server.certificate_expiries()
    for source in sources:
        if source.certificate_expires_at is not None:
            yield f"source {source.of.name}".rstrip(), source.certificate_expires_at


def _quotas(settings: Settings) -> QuotaLimits:
    limits = settings.limits
    return QuotaLimits(
        streams=limits.streams,
        streams_each=limits.streams_per_caller,
        per_minute_each=limits.kubeconfigs_per_minute,
    )


class BlockingCalls(ThreadPoolExecutor):
    """Threads for blocking calls. A call for which no other thread can be started, because the limit of processes of
    the pod is reached, waits for one: the error would end the task that makes the call, and with it the daemon."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="blocking call")
        self.submit(int).result()  # starts the first thread

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


def watched_loop(observe: Callable[[float], None], *, blocked_s: float = BLOCKED_S) -> LoopWatchdog:
    """Return a context manager that reports each delay of the running event loop, and logs what blocks it."""
    return LoopWatchdog(observe, blocked=_blocked, was_blocked=_was_blocked, blocked_s=blocked_s)


def _blocked(found: BlockedLoop) -> None:
    log.warning("event loop is blocked", seconds=round(found.seconds, 1), task=found.task, stack=found.stack)


def _was_blocked(seconds: float) -> None:
    log.warning("event loop was blocked", seconds=round(seconds, 1))
