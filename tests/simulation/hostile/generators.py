"""What a hostile tenant does, in the objects that it may write and in the calls that it may make. Each generator was a
real attack once, and has the scale of its objects from the simulation."""

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Any

from milo_discovery.v1 import discovery_pb2 as pb
from milo_discoveryd.server.calls.in_flight import MAX_PER_OWNER
from milo_discoveryd.sources.project import PROJECTS
from milo_discoveryd.sources.project_control_plane import CONTROL_PLANES, PROJECT_UID_LABEL
from milo_discoveryd.sources.service_consumer import SERVICE_CONSUMERS
from tests.simulation.hostile.daemon import HOSTILE, SERVICE, Daemon
from tests.simulation.hostile.upstream import Upstream, kubeconfig
from tests.simulation.seeded.loop import WALL_AT_ZERO

CONSUMERS, PLANES, PROJECT = SERVICE_CONSUMERS.path, CONTROL_PLANES.path, PROJECTS.path
DECLARED, SECRETS = "/apis/example.com/v1/clusters", "/api/v1/secrets"
SELECTOR = ",".join(["tenant=hostile", *(f"absent-{number} notin (a,b)" for number in range(63))])
TTLS_S = (10, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
Labels = Mapping[str, str]
_NONE: Labels = {}


class Writer:
    """Writes the objects of one tenant."""

    def __init__(self, upstream: Upstream, tenant: str) -> None:
        self.upstream = upstream
        self.tenant = tenant
        self.written: dict[tuple[str, str], None] = {}

    def consumer(self, name: str, project: str, labels: Labels = _NONE, *, active: bool = True, **more: str) -> None:
        status = {"phase": "Active" if active else "Pending", "serviceName": SERVICE}
        self._put(
            CONSUMERS, name, {"spec": {"consumerProjectRef": {"name": project}}, "status": status}, {**labels, **more}
        )

    def plane(
        self, name: str, uid: str = "", labels: Labels = _NONE, *, ready: bool = True, message: str = "", **more: str
    ) -> None:
        status = _ready("ControlPlaneReady", ready, message)
        self._put(PLANES, name, {"status": status}, {**labels, **more, **({PROJECT_UID_LABEL: uid} if uid else {})})

    def project(self, name: str, **labels: str) -> None:
        self._put(PROJECT, name, {"status": _ready("Ready", True)}, labels)

    def declared(self, name: str, secret: str, **labels: str) -> None:
        self._put(DECLARED, name, {"spec": {"secret": secret}}, labels, self.tenant)

    def secret(self, name: str, server: str, *, valid_s: float = 3600.0, **data: str) -> None:
        """Write a Secret with a kubeconfig; `data` replaces or adds values."""
        content = kubeconfig(server, WALL_AT_ZERO + asyncio.get_running_loop().time() + valid_s)
        self._put(SECRETS, name, {"data": {"kubeconfig": content, **data}}, {}, self.tenant)

    def delete(self, path: str, name: str) -> None:
        key = f"{self.tenant}/{name}" if path in (DECLARED, SECRETS) else name
        self.written.pop((path, key), None)
        self.upstream.remove(path, key)

    def delete_all(self) -> None:
        for path, key in self.written:
            self.upstream.remove(path, key)
        self.written.clear()

    def _put(self, path: str, name: str, fields: Any, labels: dict[str, str], namespace: str = "") -> None:
        self.written[path, f"{namespace}/{name}" if namespace else name] = None
        self.upstream.put(path, name, fields, namespace, labels={"tenant": self.tenant, **labels})


def _ready(condition: str, ready: bool, message: str = "") -> Any:
    return {"conditions": [{"type": condition, "status": "True" if ready else "False", "message": message}]}


class Generator:
    is_outage = False
    """Whether the API server of both tenants fails too, so that its changes may come late."""

    def __init__(self, writer: Writer, daemon: Daemon, random: Random, objects: int) -> None:
        self.write = writer
        self.daemon = daemon
        self.random = random
        self.objects = objects
        self.steps = 0
        self.calls: list[asyncio.Task[Any]] = []
        self.prefix = type(self).__name__.lower()

    def begin(self) -> None:
        """Create the objects."""

    def step(self) -> None:
        """Act, about ten times a second."""

    def end(self) -> None:
        for call in self.calls:
            call.cancel()
        self.calls.clear()

    def name(self, number: int) -> str:
        return f"{self.prefix}-{number}"

    def drawn(self, most: int = 50) -> list[int]:
        """Return the numbers of some of the objects."""
        return self.random.sample(range(self.objects), min(most, self.objects))


class OneProject(Generator):
    """Many ServiceConsumers name one project, and change."""

    def begin(self) -> None:
        for number in range(self.objects):
            self.write.consumer(self.name(number), "attacked")

    def step(self) -> None:
        self.steps += 1
        for number in self.drawn():
            self.write.consumer(self.name(number), "attacked", active=self.random.random() < 0.5, at=f"{self.steps}")


class WideLabels(Generator):
    """ServiceConsumers of one project, each with other labels, which are merged."""

    def begin(self) -> None:
        self.objects = min(self.objects, 300)
        for number in range(self.objects):
            self._write(number, 0)

    def step(self) -> None:
        self.steps += 1
        for number in self.drawn(3):
            self._write(number, self.steps)

    def _write(self, number: int, step: int) -> None:
        labels = {f"label-{number}-{label}": f"{step}" * 20 for label in range(100)}
        self.write.consumer(self.name(number), f"wide-{number // 100}", labels)


class OneSecret(Generator):
    """Many objects name one Secret, whose server changes."""

    def begin(self) -> None:
        self.write.secret("shared", "https://shared.example.com")
        for number in range(self.objects):
            self.write.declared(self.name(number), "shared")

    def step(self) -> None:
        self.steps += 1
        for change in range(2):
            self.write.secret("shared", f"https://shared-{self.steps}-{change}.example.com")


class OneAddress(Generator):
    """Many Secrets have one server, so that the clusters of a hundred objects each are contested; the claimants come
    and go."""

    def begin(self) -> None:
        for number in range(0, self.objects, 100):
            self.write.secret(f"address-{number // 100}", "https://contested.example.com")
        for number in range(self.objects):
            self.write.declared(self.name(number), f"address-{number // 100}")

    def step(self) -> None:
        self.steps += 1
        for number in self.drawn(20):
            if self.random.random() < 0.5:
                self.write.delete(DECLARED, self.name(number))
            else:
                self.write.declared(self.name(number), f"address-{number // 100}", at=f"{self.steps}")
        secret = self.random.randrange(max(1, self.objects // 100))
        moves = self.random.random() < 0.5
        self.write.secret(f"address-{secret}", f"https://{'moved' if moves else 'contested'}.example.com")


class Rivals(Generator):
    """Objects claim the addresses and UIDs of the other tenant's clusters: from the beginning, again, and by turns with
    others of their own."""

    def begin(self) -> None:
        self.objects = min(self.objects, 500)
        for number in range(self.objects):
            self._write(number)

    def step(self) -> None:
        self.steps += 1
        for number in self.drawn(20):
            if self.random.random() < 0.3:
                self.write.delete(DECLARED, self.name(number))
                self.write.delete(PLANES, self.name(number))
            else:
                self._write(number)

    def _write(self, number: int) -> None:
        name, random = self.name(number), self.random
        victim = f"honest-{random.randrange(5)}"
        own = random.random() < 0.3
        self.write.secret(name, f"https://{name if own else victim}.example.com")
        self.write.declared(name, name, at=f"{self.steps}")
        self.write.plane(name, name if own else f"uid-{victim}", ready=random.random() < 0.8)


class OneUid(Generator):
    """Many control planes claim one project UID; the claimants change, flap, come and go."""

    def begin(self) -> None:
        for number in range(self.objects):
            self.write.plane(self.name(number), "claimed")

    def step(self) -> None:
        self.steps += 1
        for number in self.drawn():
            match self.random.randrange(4):
                case 0:
                    self.write.delete(PLANES, self.name(number))
                case 1:
                    self.write.plane(self.name(number), f"other-{self.random.randrange(3)}")
                case 2:
                    self.write.plane(self.name(number), "claimed", ready=False)
                case _:
                    self.write.plane(self.name(number), "claimed", at=f"{self.steps}")


class Flapping(Generator):
    """Control planes become ready and not ready, with long messages."""

    def begin(self) -> None:
        for number in range(self.objects):
            self.write.plane(self.name(number))

    def step(self) -> None:
        for number in self.drawn():
            self.write.plane(self.name(number), ready=self.random.random() < 0.5, message="m" * 2000)


class Odd(Generator):
    """Objects at the limits: large, nested deeply, with unusual characters and wrong types."""

    def begin(self) -> None:
        self.objects = min(self.objects, 200)
        for number in range(self.objects):
            self._write(number)

    def step(self) -> None:
        for number in self.drawn(2):
            self._write(number)

    def _write(self, number: int) -> None:
        name, random = self.name(number), self.random
        match random.randrange(6):
            case 0:
                self.write.plane(name, message="\u2028\U0001f600\x7f" * random.randrange(20_000))
            case 1:
                self._raw(name, b'{"a":' * 5000 + b"1" + b"}" * 5000)
            case 2:
                self._raw(name, b"[" + b"[]," * random.randrange(100_000) + b"[]]")
            case 3:
                self._raw(name, b'{"conditions":"none","x":"\\ufffd"}')
            case 4:
                self.write.plane(name, labels={f"l{label}": "v" * 63 for label in range(240)})
            case _:
                conditions = b",".join([b'{"type":"t","status":"s","message":"mmmmmmmmmmmmm"}'] * 5000)
                self._raw(name, b'{"conditions":[%s]}' % conditions)

    def _raw(self, name: str, status: bytes) -> None:
        upstream = self.write.upstream
        self.write.plane(name)
        version = upstream.version = upstream.version + 1
        metadata = b'{"name":"%s","uid":"uid-%s","resourceVersion":"%d"}' % (name.encode(), name.encode(), version)
        upstream.put_raw(PLANES, name, b'{"metadata":%s,"status":%s}' % (metadata, status))


class Churn(Generator):
    """Many clusters are engaged, and ended, in one batch."""

    def step(self) -> None:
        self.steps += 1
        for number in range(min(self.objects, 1000) if self.steps % 10 == 0 else 0):
            self.write.delete(PLANES, f"{self.name(number)}-{self.steps - 20}")
            self.write.plane(f"{self.name(number)}-{self.steps}")


class Restarting(Generator):
    """The API server ends watches with 410, and lists restart."""

    is_outage = True

    def step(self) -> None:
        if self.random.random() < 0.05:
            self.write.upstream.restarts = self.random.randrange(3)
            self.write.upstream.expire()


class Caller(Generator):
    """A caller of many clusters."""

    def begin(self) -> None:
        self.objects = min(self.objects, 3000)
        for number in range(self.objects):
            self.write.plane(self.name(number))

    async def read(self, _data: bytes) -> None:
        await asyncio.sleep(0)

    async def never_read(self, _data: bytes) -> None:
        await asyncio.Event().wait()

    def watch(self, count: int, **request: Any) -> None:
        """Open streams, of which some read nothing, in place of those that have ended."""
        self.calls = [call for call in self.calls if not call.done()]
        for _ in range(count - len(self.calls)):
            send = self.read if self.random.random() < 0.5 else self.never_read
            self.calls.append(self.daemon.watch(HOSTILE, send, **request))


class Lifetimes(Caller):
    """Asks for kubeconfigs of all clusters, each with many lifetimes, and cancels its calls to begin others."""

    def step(self) -> None:
        self.end()
        for _ in range(MAX_PER_OWNER):
            request = pb.IssueKubeconfigRequest(cluster=f"planes#{self.name(self.random.randrange(self.objects))}")
            request.ttl.FromSeconds(self.random.choice(TTLS_S))
            self.calls.append(self.daemon.call(self.daemon.service.issue_kubeconfig(request, HOSTILE)))


class Streams(Caller):
    """Opens streams with large selectors, many of which read nothing, while its clusters change."""

    def step(self) -> None:
        self.watch(300, filter=pb.ClusterFilter(label_selector=SELECTOR))
        for call in self.random.sample(self.calls, 10):
            call.cancel()
        for number in self.drawn(20):
            self.write.plane(self.name(number), at=f"{self.random.random():.9f}")


class StreamsWithKubeconfigs(Caller):
    """Opens streams that request kubeconfigs with short lifetimes."""

    def step(self) -> None:
        self.watch(20, include_kubeconfigs=True)
        for number in self.drawn(10):
            self.write.plane(self.name(number), at=f"{self.random.random():.9f}")


class Confirming(Caller):
    """Opens streams that confirm releases, ends clusters, and confirms in bursts."""

    def step(self) -> None:
        self.steps += 1
        while len(self.calls) < 300:
            name = f"subscriber-{len(self.calls)}"
            self.calls.append(self.daemon.watch(HOSTILE, self.read, confirm_releases=True, subscriber=name))
        for number in self.drawn(20):
            self.write.plane(self.name(number), ready=self.random.random() < 0.5)
            for subscriber in range(5):
                self._release(f"planes#{self.name(number)}", f"subscriber-{subscriber}")

    def _release(self, cluster: str, subscriber: str) -> None:
        record = self.daemon.fleet[cluster]
        if record is not None and record.cluster is not None:
            request = pb.ReleaseClusterRequest(
                cluster=cluster, incarnation=f"{record.cluster.incarnation}", subscriber=subscriber
            )
            self.daemon.call(self.daemon.service.release_cluster(request, HOSTILE))


class Lists(Caller):
    """Lists all clusters dozens of times at once, with large selectors, and asks for unknown ones."""

    def step(self) -> None:
        self.calls = [call for call in self.calls if not call.done()]
        request = pb.ListClustersRequest(filter=pb.ClusterFilter(label_selector=SELECTOR), page_size=1000)
        for number in range(40 - len(self.calls)):
            self.calls.append(self.daemon.call(self.daemon.service.list_clusters(request, HOSTILE)))
            unknown = pb.GetClusterRequest(name=f"planes#unknown-{number}")
            self.daemon.call(self.daemon.service.get_cluster(unknown, HOSTILE))
            self.daemon.call(self.daemon.service.get_server_info(pb.GetServerInfoRequest(), HOSTILE))


class SlowProbes(Caller):
    """Endpoints of clusters that answer probes after a minute."""

    def begin(self) -> None:
        super().begin()
        self.daemon.probe_s = 60.0


class Secrets(Caller):
    """Asks for kubeconfigs of clusters whose Secrets end soon, are odd, or belong to objects that are made again."""

    def begin(self) -> None:
        self.objects = min(self.objects, 1000)
        for number in range(self.objects):
            self._write(number)

    def step(self) -> None:
        self.steps += 1
        self.calls = [call for call in self.calls if not call.done()]
        for number in self.drawn(20):
            self._write(number)
        for number in self.drawn(MAX_PER_OWNER - len(self.calls)):
            request = pb.IssueKubeconfigRequest(cluster=f"declared#hostile.{self.name(number)}")
            self.calls.append(self.daemon.call(self.daemon.service.issue_kubeconfig(request, HOSTILE)))

    def _write(self, number: int) -> None:
        name, server = self.name(number), f"https://{self.name(number)}.example.com"
        match self.random.randrange(5):
            case 0:
                self.write.secret(name, server, valid_s=10.0)
            case 1:
                self.write.secret(name, server, padding="A" * (1 << 20 if number < 10 else 1000))
            case 2:
                self.write.secret(name, server, kubeconfig=self.random.choice(("", "!", "e30=", "AAAA" * 1000)))
            case 3:
                self.write.delete(DECLARED, name)
            case _:
                self.write.secret(name, server)
        self.write.declared(name, name, at=f"{self.steps}")


GENERATORS: tuple[type[Generator], ...] = (
    *(OneProject, WideLabels, OneSecret, OneAddress, Rivals, OneUid, Flapping, Odd, Churn, Restarting),
    *(Lifetimes, Streams, StreamsWithKubeconfigs, Confirming, Lists, Secrets, SlowProbes),
)
