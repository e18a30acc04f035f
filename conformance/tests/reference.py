"""A small subscriber that passes every case, and a broken variant for each case, which that case catches (matrix.py).

It is run as `python -m conformance.tests.reference [CASE]`. With the name of a case it breaks one rule, where the
source calls `broken` with this name. It uses no client library: all that a client has to do is in this file.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import sys
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import unknown_fields
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discovery.v1.discovery_pb2_grpc import DiscoveryServiceStub

BROKEN = sys.argv[1] if len(sys.argv) > 1 else ""
ENVIRONMENT = os.environ
ADDRESS = ENVIRONMENT["MILO_DISCOVERY_ADDRESS"]
HEARTBEAT_S = float(ENVIRONMENT["CONFORMANCE_HEARTBEAT_S"])
SUBSCRIBER = ENVIRONMENT.get("CONFORMANCE_SUBSCRIBER", "")
FINAL = {"INVALID_ARGUMENT", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED", "FAILED_PRECONDITION"}
TYPES = pb.ClusterEvent
HEALTHY_S = 10.0
"""A stream that lasted this long resets the backoff."""
LONGEST_TIMER_S = 2**31 / 1000
RUNS_FLEET = "CONFORMANCE_FLEET" in ENVIRONMENT
LINGERS = "CONFORMANCE_LINGER" in ENVIRONMENT
CONTENT = ("uid", "endpoint", "labels", "annotations", "suspended", "draining", "source")


def broken(case: str) -> bool:
    """Return whether this subscriber breaks the rule of the case."""
    return case == BROKEN


def report(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def short(number: int, names: Any) -> str:
    try:
        return names.Name(number).removeprefix("DISENGAGE_REASON_").removeprefix("TYPE_")
    except ValueError:
        if broken("unknown-reason"):
            raise Broken from None
        return "UNSPECIFIED"


class Broken(Exception):  # noqa: N818
    """The stream cannot be used, so another one is opened."""


class Final(Exception):  # noqa: N818
    """An error that a retry cannot fix."""


def token_of(kubeconfig: pb.Kubeconfig) -> str:
    return str(json.loads(kubeconfig.kubeconfig)["users"][0]["user"].get("token", ""))


class Known:
    """A cluster, with its kubeconfig if there is one."""

    def __init__(self, event: pb.ClusterEvent, before: Known | None) -> None:
        self.cluster = event.cluster
        self.kubeconfig = before.kubeconfig_for(self.cluster) if before else None
        if event.HasField("kubeconfig") and (broken("refused-with-the-stream") or token_of(event.kubeconfig)):
            self.kubeconfig = event.kubeconfig

    def kubeconfig_for(self, cluster: pb.Cluster) -> pb.Kubeconfig | None:
        """Return the kubeconfig, unless it is for a former endpoint."""
        is_for_it = self.cluster.endpoint == cluster.endpoint or broken("delivered-for-a-former-endpoint")
        return self.kubeconfig if is_for_it else None


class View:
    """The clusters that were reported to the user, and the revision from which the next stream resumes."""

    def __init__(self) -> None:
        self.clusters: dict[str, Known] = {}
        self.revision = ""
        self.snapshot: dict[str, Known] | None = None
        self.batches = 0
        self.last: str | None = None
        self.is_live = False
        self.seen: set[str] = set()

    def open(self) -> str:
        if not broken(f"snapshot-cut-after-batch-{self.batches}"):
            self.snapshot = None
        self.last, self.is_live, self.batches = None, False, 0
        if len(self.revision) > 16 * 1024 and not broken("overlong-revision"):
            self.revision = ""
        return self.revision

    def receive(self, batch: pb.WatchClustersResponse) -> None:
        if batch.reset and not (broken("empty-fleet") and not batch.events):
            if not (self.snapshot and (broken("reset-within-stream") or not self.batches)):
                self.snapshot = {}
            self.batches = 0
        else:
            self.check(batch)
        self.last = batch.revision
        self.seen.add(batch.revision)
        if batch.source.state == pb.SourceStatus.STATE_STALE and broken("stale-source"):
            self.lose("UNSPECIFIED")
        if self.snapshot is not None:
            self.gather(self.snapshot, batch)
        elif batch.synced:
            self.follow(batch)
        elif broken("unsynced-heartbeats"):
            self.clusters = {}
        elif broken("revision-before-snapshot"):
            self.revision = batch.revision

    def check(self, batch: pb.WatchClustersResponse) -> None:
        """Refuse a batch that does not follow the last one."""
        if self.last is None:
            if not batch.synced:
                return
            if not self.revision and not broken("changes-without-snapshot"):
                raise Broken
            if batch.previous_revision != self.revision and not broken("resumed-from-another-revision"):
                raise Broken
        elif batch.previous_revision != self.last:
            if self.snapshot is not None:
                tolerated = broken("missing-batch-in-snapshot")
            elif batch.previous_revision in self.seen:
                tolerated = broken("duplicate-batch")
            else:
                tolerated = broken("missing-batch")
            if not tolerated:
                raise Broken

    def gather(self, snapshot: dict[str, Known], batch: pb.WatchClustersResponse) -> None:
        self.batches += 1
        for event in batch.events:
            name = event.cluster.name
            if event.type == TYPES.TYPE_DISENGAGED:
                snapshot.pop(name, None)
            elif (event.type == TYPES.TYPE_UPDATED and broken("snapshot-in-many-batches")) or (
                event.type == TYPES.TYPE_KUBECONFIG and broken("renewed-with-the-stream")
            ):
                continue
            elif event.type <= TYPES.TYPE_KUBECONFIG or broken("unknown-event-type-in-snapshot"):
                snapshot[name] = Known(event, snapshot.get(name))
        if not batch.synced:
            return
        for name, known in self.clusters.items():
            if known.cluster.source in batch.pending_sources and not broken("pending-source"):
                snapshot.setdefault(name, known)
        if broken("large-fleet") and len(snapshot) > 10_000:
            snapshot = dict(list(snapshot.items())[:10_000])
        self.compare(snapshot)
        self.clusters, self.snapshot = snapshot, None
        self.revision, self.is_live = batch.revision, True

    def compare(self, snapshot: dict[str, Known]) -> None:
        missing = [name for name in self.clusters if name not in snapshot]
        for name in missing[:1] if broken("restart-with-fewer-clusters") else missing:
            self.report(TYPES.TYPE_DISENGAGED, self.clusters[name], "UNSPECIFIED")
        new = [name for name in snapshot if name not in self.clusters]
        if broken("restart-with-more-clusters") and self.clusters:
            new = new[:3]
        for name in new:
            self.report(TYPES.TYPE_ENGAGED, snapshot[name])
        for name, before in self.clusters.items():
            if name in snapshot:
                self.compare_one(before, snapshot[name])

    def compare_one(self, before: Known, now: Known) -> None:
        was, is_now = before.cluster, now.cluster
        if broken("release-after-restart"):
            is_now.incarnation = was.incarnation
        if was.uid != is_now.uid and not broken("restart-with-replaced-cluster"):
            self.report(TYPES.TYPE_DISENGAGED, before, "REPLACED")
            self.report(TYPES.TYPE_ENGAGED, now)
            return
        if was.HasField("draining") and not is_now.HasField("draining") and not broken("drained-while-away"):
            self.report(TYPES.TYPE_DISENGAGED, before, short(was.draining.reason, pb.DisengageReason))
            self.report(TYPES.TYPE_ENGAGED, now)
            return
        ignored = {"restart-with-changed-cluster": "annotations", "resume-refused": "suspended"}.get(BROKEN)
        compared = [field for field in CONTENT if field != ignored]
        if broken("restart-with-same-clusters"):
            compared.append("incarnation")
        if any(getattr(was, field) != getattr(is_now, field) for field in compared):
            self.report(TYPES.TYPE_UPDATED, now)
        elif RUNS_FLEET and is_now.HasField("draining") and not broken("released-after-a-restart"):
            apply_to_handlers(self, "REFRESHED", now)  # the daemon waits for a release of the new incarnation
        if now.kubeconfig is None:
            now.kubeconfig = before.kubeconfig_for(is_now)
        elif now.kubeconfig != before.kubeconfig and not broken("other-kubeconfig-after-restart"):
            self.report(TYPES.TYPE_KUBECONFIG, now)

    def follow(self, batch: pb.WatchClustersResponse) -> None:
        changed: dict[str, Known | None] = {}
        changes: list[tuple[int, Known, str, bool]] = []
        for event in batch.events:
            name = event.cluster.name
            if event.type > TYPES.TYPE_KUBECONFIG:
                if broken("unknown-event-type"):
                    raise Broken
                continue
            before = changed[name] if name in changed else self.clusters.get(name)
            kind = TYPES.Type.Name(event.type)[5:].lower()
            if (before is None) != (kind == "engaged"):
                state = "engaged" if before else "unknown"
                # The case starts-over-after-contradiction sends a batch with only this event.
                if not broken(f"contradiction-{kind}-{state}") or len(batch.events) == 1:
                    if not broken("starts-over-after-contradiction"):
                        self.revision = ""
                    raise Broken
            inherits = broken("replaced-without-kubeconfig") and kind == "engaged"
            after = Known(event, self.clusters.get(name) if inherits else before)
            changed[name] = None if kind == "disengaged" else after
            is_useless = kind == "kubeconfig" and before is not None and after.kubeconfig is before.kubeconfig
            if not is_useless and not (broken("with-the-stream") and kind == "kubeconfig" and not before.kubeconfig):
                has_kubeconfig = (inherits or event.HasField("kubeconfig")) and after.kubeconfig is not None
                changes.append((event.type, after, short(event.reason, pb.DisengageReason), has_kubeconfig))
        if broken("replaced-in-one-batch"):
            changes = list({one[1].cluster.name: one for one in changes}.values())
        if broken("engaged-again-in-one-batch"):
            changes = [change for change in changes if not self.is_engaged_again(changed, change[1].cluster.name)]
        for kind_of, known, reason, has_kubeconfig in changes:
            self.report(kind_of, known, reason, has_kubeconfig=has_kubeconfig)
        for name, changed_to in changed.items():
            if changed_to is None:
                self.clusters.pop(name, None)
            else:
                self.clusters[name] = changed_to
        self.is_live = True
        if broken("revision-of-empty-batch") and not batch.events:
            return
        if broken("resume") and {event.type for event in batch.events} == {TYPES.TYPE_DISENGAGED}:
            return
        self.revision = batch.revision

    def is_engaged_again(self, changed: dict[str, Known | None], name: str) -> bool:
        """Return whether a batch has disengaged the cluster and engaged it again, with the same UID."""
        before, after = self.clusters.get(name), changed.get(name)
        if before is None or after is None or before.cluster.uid != after.cluster.uid:
            return False
        return before.cluster.incarnation != after.cluster.incarnation

    def lose(self, reason: str = "OWNERSHIP_LOST") -> None:
        if broken("ownership-lost") and RUNS_FLEET:
            return
        for known in self.clusters.values():
            self.report(TYPES.TYPE_DISENGAGED, known, reason)
        self.clusters, self.snapshot = {}, None
        if not broken("starts-over-after-loss"):
            self.revision = ""

    def report(self, kind: int, known: Known, reason: str = "", *, has_kubeconfig: bool = True) -> None:
        cluster, event = known.cluster, TYPES.Type.Name(kind)[5:]
        if RUNS_FLEET:
            apply_to_handlers(self, event, known)
            return
        draining = short(cluster.draining.reason, pb.DisengageReason) if cluster.HasField("draining") else ""
        if broken("engaged-as-draining") and event == "ENGAGED":
            draining = ""
        if broken("changes") and reason == "NOT_READY" and not draining:
            reason = ""
        if draining and broken("drain"):
            asyncio.get_running_loop().create_task(self.release(cluster.name))
        tells_kubeconfig = event in {"ENGAGED", "KUBECONFIG"} and known.kubeconfig is not None and has_kubeconfig
        report(
            event,
            cluster=cluster.name,
            uid=cluster.uid,
            endpoint=cluster.endpoint,
            suspended=cluster.suspended and not (broken("first-snapshot") and event == "ENGAGED"),
            draining=draining,
            reason=reason,
            kubeconfig=known.kubeconfig.kubeconfig.decode() if tells_kubeconfig and known.kubeconfig else "",
        )

    async def release(self, name: str) -> None:
        incarnation = self.clusters[name].cluster.incarnation
        if broken("drain-after-reconnect") and name in RELEASED:
            return
        RELEASED.add(name)
        request = pb.ReleaseClusterRequest(cluster=name, incarnation=incarnation, subscriber=SUBSCRIBER)
        await call("ReleaseCluster", request)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Make a redirect an error."""


class Handler:
    """The work on one engagement of a cluster."""

    def __init__(self, view: View, known: Known) -> None:
        self.view = view
        self.name, self.uid = known.cluster.name, known.cluster.uid
        self.is_engaged = True
        self.is_draining = self.was_asked = False
        self.signaled = asyncio.Event()
        self.commanded = asyncio.Event()
        self.verb = ""
        self.issued: pb.Kubeconfig | None = None
        self.issued_for = ""
        self.asked_at = 0.0
        self.first: dict[str, Any] = {}
        running = HANDLERS.get(self.name, [])
        # Only in next-begins-after-end: other cases in which one handler follows another keep the UID, or request a
        # credential.
        overlaps = broken("next-begins-after-end") and all(
            handler.uid != self.uid and not handler.was_asked for handler in running
        )
        if broken("drains-behind-a-handler") and known.cluster.HasField("draining"):
            overlaps = True
        before = [] if overlaps else [handler.task for handler in running]
        self.task = asyncio.create_task(self.run(before))
        HANDLERS.setdefault(self.name, []).append(self)

    async def run(self, before: list[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before)
        while not self.signaled.is_set():
            report("BEGIN", cluster=self.name, uid=self.uid)
            await self.work()
            if self.verb != "fail" or broken("handler-error"):
                break
            await asyncio.sleep(0.2)
        HANDLERS[self.name].remove(self)
        if self.is_draining and not (broken("release-after-error") and self.verb == "fail"):
            drain = (self.name, self.view.clusters[self.name].cluster.incarnation)
            IN_FLIGHT.add(drain)
            await self.view.release(self.name)
            IN_FLIGHT.discard(drain)

    async def work(self) -> None:
        self.verb = ""
        self.commanded.clear()
        waits = [asyncio.create_task(event.wait()) for event in (self.signaled, self.commanded)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if not self.commanded.is_set():
            report("SIGNALED", cluster=self.name, uid=self.uid)
            if self.is_draining and broken("release-after-end"):
                await self.view.release(self.name)
            if LINGERS:
                await self.commanded.wait()
        report("END", cluster=self.name, uid=self.uid)

    def request(self) -> str:
        """Send a request; return its error, empty if it succeeded."""
        known = self.view.clusters[self.name]
        assert known.kubeconfig is not None
        cluster = json.loads(known.kubeconfig.kubeconfig)["clusters"][0]["cluster"]
        trust = ssl.create_default_context(cadata=b64decode(cluster["certificate-authority-data"]).decode())
        if broken("redirect"):
            trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        tls = urllib.request.HTTPSHandler(context=trust)
        no_proxy = urllib.request.ProxyHandler({})
        opener = urllib.request.build_opener(tls, no_proxy, *([] if broken("redirect") else [NoRedirects]))
        headers = {"Authorization": f"Bearer {token_of(known.kubeconfig)}"}
        try:
            opener.open(urllib.request.Request(f"{cluster['server']}/api/v1/namespaces", headers=headers)).close()
        except urllib.error.URLError as error:
            return str(error)
        return ""

    async def credential(self) -> dict[str, Any]:
        """Return the credential that a request would use; empty if there is none."""
        self.was_asked = True
        known = self.view.clusters.get(self.name)
        if not self.is_engaged and not self.is_given_away(known):
            return {}
        kubeconfig = self.issued if known is None else known.kubeconfig
        if known is not None and self.is_usable(known):
            kubeconfig = kubeconfig or self.issued
        while kubeconfig is None and known is not None:
            request = pb.IssueKubeconfigRequest(cluster=self.name, incarnation=known.cluster.incarnation)
            try:
                issued = (await call("IssueKubeconfig", request)).kubeconfig
            except grpc.aio.AioRpcError:
                return {}
            asked, known = known, self.view.clusters.get(self.name)
            is_for_it = known is not None and known.cluster.endpoint == asked.cluster.endpoint
            if is_for_it or broken("endpoint-changed-during-a-request"):
                kubeconfig = self.issued = issued
                self.issued_for, self.asked_at = asked.cluster.endpoint, time.monotonic()
        if kubeconfig is None:
            return {}
        file = json.loads(kubeconfig.kubeconfig)
        user = file["users"][0]["user"]
        found = {"server": file["clusters"][0]["cluster"]["server"], "as": user.get("as", "")}
        self.first = self.first or found
        return {"token": user["token"], **(self.first if broken("endpoint-and-user-of-the-token") else found)}

    def is_usable(self, known: Known) -> bool:
        """Return whether the issued kubeconfig is used again: not for a former endpoint, and for some seconds."""
        if broken("endpoint-changed-by-a-restart"):
            return True
        is_recent = time.monotonic() < self.asked_at + 5 and not broken("credential-due-on-arrival")
        return is_recent and self.issued_for == known.cluster.endpoint

    def is_given_away(self, known: Known | None) -> bool:
        """Return whether this broken subscriber issues a credential after the end of the engagement."""
        if known is None:
            return broken("credential-after-the-end")
        is_same = known.cluster.uid == self.uid
        return broken("credential-of-a-later-engagement" if is_same else "credential-of-a-replaced-cluster")


HANDLERS: dict[str, list[Handler]] = {}
IN_FLIGHT: set[tuple[str, str]] = set()
"""The drains, by name and incarnation, that are being released."""


def apply_to_handlers(view: View, event: str, known: Known) -> None:
    name = known.cluster.name
    if event == "ENGAGED" and known.cluster.HasField("draining"):
        Handler(view, known)  # it begins no work
        event = "UPDATED"
    newest = HANDLERS.get(name, [])[-1:]
    begins_again = broken("one-handler") and event == "UPDATED" and known.cluster.suspended
    if event == "ENGAGED" or begins_again:
        Handler(view, known)
    is_sent_again = event == "REFRESHED" or (event == "UPDATED" and not broken("released-again-after-a-reconnect"))
    if is_sent_again and known.cluster.HasField("draining") and not newest:
        drain = (name, known.cluster.incarnation)
        if drain not in IN_FLIGHT or broken("one-release-in-flight"):
            IN_FLIGHT.add(drain)
            task = asyncio.get_running_loop().create_task(view.release(name))
            task.add_done_callback(lambda _: IN_FLIGHT.discard(drain))
    for handler in newest:
        if event == "DISENGAGED" or begins_again:
            handler.is_engaged = handler.is_draining = False
            handler.signaled.set()
        elif known.cluster.HasField("draining"):
            handler.is_draining = True
            handler.signaled.set()


async def end_handlers(running: asyncio.Task[None]) -> None:
    """End the handlers, then the subscription and the process, as on SIGTERM."""
    handlers = [handler for of_cluster in HANDLERS.values() for handler in of_cluster]
    for handler in handlers:
        handler.signaled.set()
    if handlers and not broken("stop-waits-for-handlers"):
        await asyncio.wait([handler.task for handler in handlers])
    running.cancel()
    with suppress(grpc.aio.AioRpcError):
        limit_s = 10 if broken("stop-without-an-answer") else 1
        await call("EndSubscription", pb.EndSubscriptionRequest(subscriber=SUBSCRIBER), limit_s)
    os._exit(0)


RELEASED: set[str] = set()
FILES: dict[str, bytes] = {}
ATTEMPTS = [0]


def read(variable: str, *, once: str = "") -> bytes | None:
    """Return the content of the file that a variable names, as it is now."""
    path = ENVIRONMENT.get(variable)
    if path is None:
        return None
    content = Path(path).read_bytes().strip()
    return FILES.setdefault(path, content) if broken(once) else content


def metadata() -> tuple[tuple[str, str], ...]:
    token = read("MILO_DISCOVERY_TOKEN_FILE", once="renewed-token")
    return () if token is None else (("authorization", f"Bearer {token.decode()}"),)


def connect() -> grpc.aio.Channel:
    if broken("expected-server-uid") and "MILO_DISCOVERY_SERVER_UID" in ENVIRONMENT:
        raise Broken
    if ADDRESS.startswith("unix:"):
        path = Path(ADDRESS.removeprefix("unix://"))
        expected = ENVIRONMENT.get("MILO_DISCOVERY_SERVER_UID")
        if expected is not None and path.exists() and str(path.stat().st_uid) != expected and not broken("server-uid"):
            raise Broken
        if broken("socket-replaced") and path.exists() and FILES.setdefault("inode", inode(path)) != inode(path):
            raise Broken
    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.enable_retries", int(broken("goaway-at-once"))),
        ("grpc.max_receive_message_length", {"large-batch": 1, "larger-batch": 5}.get(BROKEN, 64) << 20),
    ]
    ca = read("MILO_DISCOVERY_CA_FILE", once="renewed-ca")
    if ca is None:
        return grpc.aio.insecure_channel(ADDRESS, options=options)
    ATTEMPTS[0] += 1
    host, _, port = ADDRESS.rpartition(":")
    if broken("tls-of-another-ca"):
        with suppress(OSError):
            ca = ssl.get_server_certificate((host, int(port))).encode()
    if broken("tls-for-another-name") and ATTEMPTS[0] % 2:
        options.append(("grpc.ssl_target_name_override", "another.example"))
    key = read("MILO_DISCOVERY_KEY_FILE", once="client-certificate")
    certificate = read("MILO_DISCOVERY_CERTIFICATE_FILE", once="client-certificate")
    return grpc.aio.secure_channel(ADDRESS, grpc.ssl_channel_credentials(ca, key, certificate), options=options)


def inode(path: Path) -> bytes:
    return str(path.stat().st_ino).encode()


IDLE: list[grpc.aio.Channel] = []
"""Channels for the calls of handlers: those that the daemon has answered on."""


async def call(method: str, request: Any, timeout: float = 10) -> Any:
    channel = IDLE.pop() if IDLE else connect()
    is_answered = False
    try:
        stub = getattr(DiscoveryServiceStub(channel), method)
        response = await stub(request, timeout=timeout, metadata=() if broken("token") else metadata())
        is_answered = True
    except grpc.aio.AioRpcError as error:
        is_answered = has_detail(error, error_details_pb2.ErrorInfo()) and not broken("refusals-on-one-connection")
        raise
    else:
        return response
    finally:
        if is_answered and RUNS_FLEET:
            IDLE.append(channel)
        else:
            await channel.close()


def has_detail(error: grpc.aio.AioRpcError, detail: Any) -> bool:
    """Return whether the status has a detail of this type, which is unpacked."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            with suppress(*() if broken("malformed-details") else (DecodeError,)):
                return any(each.Unpack(detail) for each in status_pb2.Status.FromString(value).details)
    return False


class Ownership:
    """The ownership of a sharded daemon's clusters, and its expiry."""

    def __init__(self, view: View, lost: asyncio.Event) -> None:
        self.view, self.lost = view, lost
        self.is_sharded = False
        self.is_streaming = False
        self.until = 0.0
        self.task: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        return not self.is_sharded or time.clock_gettime(time.CLOCK_BOOTTIME) < self.until

    async def begin(self) -> None:
        if self.task is None or self.task.done():
            self.is_sharded = True
            await self.renew()
            # Evaluate is_held now, not in the first step of the task: the process may be suspended in between.
            self.task = asyncio.create_task(self.keep(was_held=self.is_held))

    async def keep(self, *, was_held: bool) -> None:
        while self.is_sharded:
            left = self.until - time.clock_gettime(time.CLOCK_BOOTTIME)
            # Only for a short ownership: with a long one, the case `failed-renewal` would fail too.
            wait = left * 0.9 if broken("renewals") and left <= 12 else min(3.0, left * 0.4)
            await asyncio.sleep((wait if left > 0.1 else max(left, 0.0)) if was_held else 0.5)
            has_run_out = was_held and not self.is_held
            if broken("ownership-runs-out"):
                await self.renew()
            if has_run_out and not broken("suspended"):
                was_held = False
                self.end()
            if not (broken("renewals-without-stream") and self.is_held and not self.is_streaming):
                await self.renew()
            if self.is_held != was_held:
                was_held = self.is_held
                if not was_held:
                    self.end()

    def end(self) -> None:
        self.view.lose()
        self.lost.set()

    async def renew(self) -> None:
        sent_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        left = self.until - sent_at
        timeout = 60.0 if broken("ownership-runs-out") else min(3.0, left) if left > 0 else 3.0
        try:
            holds = self.view.clusters and not broken("renewals-name-the-subscriber")
            request = pb.RenewOwnershipRequest(subscriber=SUBSCRIBER if holds else "")
            response = await call("RenewOwnership", request, timeout)
        except grpc.aio.AioRpcError as error:
            if broken("failed-renewal") and left > 0 and error.code() is grpc.StatusCode.UNAVAILABLE:
                self.until = 0.0
            return
        if response is None and not broken("malformed-renewal"):
            return
        self.is_sharded = response.sharded or broken("no-longer-sharded")
        if broken("counted-from-the-request"):
            sent_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        if response.HasField("valid_for"):
            self.until = max(self.until, sent_at + response.valid_for.ToTimedelta().total_seconds())
        elif broken("response-without-time") and response.sharded:
            self.until = 0.0


class Subscription:
    """A subscription, which opens streams one after another, with backoff."""

    def __init__(self) -> None:
        self.view = View()
        self.lost = asyncio.Event()
        self.ownership = Ownership(self.view, self.lost)
        self.channel: grpc.aio.Channel | None = None
        self.has_connected = False
        self.losses = 0
        self.streams = 0

    async def run(self) -> None:
        delay = 0.2
        while True:
            while not self.ownership.is_held:  # noqa: ASYNC110  (small)
                await asyncio.sleep(0.05)
            self.lost.clear()
            wait, began = 0.0, 0.0
            try:
                async for _ in self.stream():
                    began = began or time.monotonic()
                    if broken("backoff-after-snapshots"):
                        delay = 0.2
            except grpc.aio.AioRpcError as error:
                wait = self.after(error)
            except (Broken, OSError):
                pass
            else:
                if broken("transient-ok"):
                    return
            if began and time.monotonic() - began >= HEALTHY_S and not broken("backoff-resets"):
                delay = 0.2
            if broken("subscription-across-reconnect"):
                await call("EndSubscription", pb.EndSubscriptionRequest(subscriber=SUBSCRIBER))
            jitter = 1.0 if broken("backoff-jitter") else random.uniform(0.5, 1)
            await asyncio.sleep(wait or (0 if broken("backoff") else delay * jitter))
            delay = min(delay + 0.5 if broken("backoff-doubles") else 2 * delay, 5)

    def after(self, error: grpc.aio.AioRpcError) -> float:
        """Return the minimum delay after an error. Raise Final if a retry cannot fix the error."""
        code = error.code().name
        is_final = code in FINAL and not broken(f"fatal-{code.lower().replace('_', '-')}")
        if code == "UNAVAILABLE" and error.details() and self.has_connected:
            self.losses += 1
            is_final = broken("cut-connection") and self.losses == 3
        if (
            broken("address-not-there-yet")
            and not self.has_connected
            and code == "UNAVAILABLE"
            and ADDRESS[:4] == "unix"
        ):
            is_final = True
        if is_final or broken(f"transient-{code.lower().replace('_', '-')}"):
            raise Final(code)
        info = error_details_pb2.RetryInfo()
        if not has_detail(error, info) or broken("retry-info"):
            return 0.0
        asked_s = info.retry_delay.ToTimedelta().total_seconds()
        return 0.001 if broken("retry-info-of-days") and asked_s > LONGEST_TIMER_S else asked_s

    async def stream(self) -> AsyncIterator[None]:
        self.streams += 1
        selector = ENVIRONMENT.get("CONFORMANCE_LABEL_SELECTOR", "")
        request = pb.WatchClustersRequest(
            filter=pb.ClusterFilter(label_selector="" if broken("same-filter") and self.streams > 1 else selector),
            resume_revision=self.view.open(),
            include_kubeconfigs="CONFORMANCE_KUBECONFIGS" in ENVIRONMENT,
            confirm_releases=bool(SUBSCRIBER),
            subscriber=SUBSCRIBER,
            accepts_pending_sources=True,
        )
        request.heartbeat_interval.FromMilliseconds(int(HEARTBEAT_S * 1000))
        if self.channel is None or not broken("half-open-connection"):
            self.channel = connect()
        channel = self.channel
        stream = DiscoveryServiceStub(channel).WatchClusters(request, metadata=metadata())
        ends = [asyncio.create_task(self.lost.wait())]
        if broken("goaway"):
            ends.append(asyncio.create_task(leaves_ready(channel)))
        for end in ends:
            end.add_done_callback(lambda _: stream.cancel())
        silence: float | None = (2.1 if broken("late-heartbeat") else 3) * HEARTBEAT_S
        limit = None if broken("silent-from-the-start") else silence
        try:
            while True:
                try:
                    batch = await asyncio.wait_for(stream.read(), limit)
                    limit = silence
                except TimeoutError:
                    if broken("heartbeat-silence") and self.ownership.is_streaming:
                        self.view.revision = ""
                    raise Broken from None
                except asyncio.CancelledError:
                    if any(end.done() for end in ends):
                        raise Broken from None
                    raise
                if batch is grpc.aio.EOF:
                    return
                if broken("unknown-fields") and unknown_fields.UnknownFieldSet(batch):
                    raise Broken
                self.has_connected = self.ownership.is_streaming = True
                if batch.sharded:
                    await self.ownership.begin()
                if not batch.events and not self.ownership.is_held and not broken("becomes-sharded"):
                    self.view.lose()
                    raise Broken
                if batch.events and not self.ownership.is_held and not broken("not-owned-yet"):
                    raise Broken
                self.view.receive(batch)
                yield
        finally:
            self.ownership.is_streaming = False
            stream.cancel()
            for end in ends:
                end.cancel()
            if not broken("half-open-connection"):
                await channel.close()


async def leaves_ready(channel: grpc.aio.Channel) -> None:
    while (state := channel.get_state()) is not grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)
    await channel.wait_for_state_change(state)


class Credentials:
    """Credentials of API clients, by cluster."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.current: dict[str, pb.Kubeconfig] = {}

    async def token(self, name: str) -> str:
        now = time.time()
        known = self.view.clusters.get(name)
        pushed = None if known is None or broken("credential-of-the-stream") else known.kubeconfig
        if pushed is not None:
            return token_of(pushed)
        current = self.current.get(name)
        is_valid = current is not None and (now < current.expires_at.seconds or broken("daemon-away-across-expiry"))
        is_fresh = current is not None and now < current.refresh_after.seconds
        if current is None or not is_valid or not (is_fresh or broken("credential-is-refreshed")):
            try:
                response = await call("IssueKubeconfig", pb.IssueKubeconfigRequest(cluster=name))
                current = self.current[name] = response.kubeconfig
            except grpc.aio.AioRpcError:
                if not is_valid:
                    raise
        assert current is not None
        return token_of(current)


ISSUED: dict[str, str] = {}


async def obey(words: list[str], view: View, credentials: Credentials) -> None:
    """Execute a command."""
    verb, name = words[0], words[1] if len(words) > 1 else ""
    if RUNS_FLEET:
        handler = HANDLERS[name][0]
        if verb == "credential":
            report("CREDENTIAL", cluster=name, **await handler.credential())
        elif verb == "request":
            report("ANSWERED", cluster=name, code=await asyncio.to_thread(handler.request))
        else:
            handler.verb = verb
            handler.commanded.set()
        return
    try:
        if verb == "release":
            await view.release(name)
        elif verb == "credential":
            report("CREDENTIAL", cluster=name, token=await credentials.token(name))
        elif verb == "kubeconfig":
            if not (broken("on-request") and name in ISSUED):
                response = await call("IssueKubeconfig", pb.IssueKubeconfigRequest(cluster=name))
                ISSUED[name] = response.kubeconfig.kubeconfig.decode()
            report("ISSUED", cluster=name, kubeconfig=ISSUED[name])
    except grpc.aio.AioRpcError as error:
        if broken("refused-release") and verb == "release":
            raise
        code = "UNAVAILABLE" if broken("request-for-other-cluster") else error.code().name
        report("CREDENTIAL" if verb == "credential" else "FAILED", cluster=name, code=code)


async def main() -> None:
    is_encrypted = ADDRESS.startswith("unix:") or "MILO_DISCOVERY_CA_FILE" in ENVIRONMENT
    if "MILO_DISCOVERY_TOKEN_FILE" in ENVIRONMENT and not is_encrypted and not broken("token-without-tls"):
        sys.exit("the token would be sent unencrypted")
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    subscription = Subscription()
    credentials = Credentials(subscription.view)
    running = asyncio.create_task(subscription.run())
    running.add_done_callback(told_final)
    while words := (await stdin.readline()).decode().split():
        if words == ["stop"] and RUNS_FLEET:
            ending = asyncio.create_task(end_handlers(running))
            ending.add_done_callback(lambda ended: ended.result())
            continue
        if words == ["stop"]:
            break
        await obey(words, subscription.view, credentials)
    running.cancel()
    if SUBSCRIBER and not broken("stop"):
        await call("EndSubscription", pb.EndSubscriptionRequest(subscriber=SUBSCRIBER))


def told_final(running: asyncio.Task[None]) -> None:
    if not running.cancelled() and isinstance(error := running.exception(), Final):
        report("FATAL", code=str(error))


if __name__ == "__main__":
    asyncio.run(main())
