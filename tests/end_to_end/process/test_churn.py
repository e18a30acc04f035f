"""Random changes and faults, chosen by a seed; validators check every history afterwards."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from hashlib import sha256
from random import Random
from typing import Any

from milo_discovery import Event
from milo_discoveryd.credentials.issuers.token_request import CLUSTER_LABEL
from milo_sandbox.resources import SECRETS
from tests.end_to_end.process.conftest import Workspace
from tests.end_to_end.process.daemon import DaemonProcess
from tests.end_to_end.process.issued_credentials import IssuedCredential, Token, credential_violations, mark
from tests.end_to_end.process.recorder import Recorder
from tests.end_to_end.process.upstream import State, Upstream
from tests.end_to_end.process.validators import alternating, breaches
from tests.support.eventually import eventually

NAMES = [f"p-{number}" for number in range(40)]
ENVIRONMENTS = ("prod", "staging", "dev")
ACCOUNT = "operators"
BIG = "x" * 30_000
"""Padding that makes a slow reader fall behind, and receive coalesced events."""


class ProjectWriter:
    """Random changes of projects, each of them recorded."""

    def __init__(self, workspace: Workspace, random: Random) -> None:
        self._sandbox = workspace.sandbox
        self._projects = workspace.sandbox.projects
        self._random = random
        self._writes = 0
        self.upstream = Upstream()

    def write(self) -> None:
        """Make one random change."""
        present = self.upstream.names()
        if len(present) < len(NAMES) // 2:
            self._create(self._random.choice([name for name in NAMES if name not in present]))
            return
        name = self._random.choice(present)
        happening = self._random.choices(
            (self._delete, self._replace, self._turn, self._relabel, self._annotate), (2, 2, 4, 8, 6)
        )[0]
        happening(name)

    def _create(self, name: str) -> None:
        labels = {"env": self._random.choice(ENVIRONMENTS)}
        made = self._projects.create(name, labels=labels, annotations={"example.com/big": BIG})
        state = State(made["metadata"]["uid"], False, tuple(labels.items()))
        self.upstream.note(name, state)
        if self._random.random() < 0.8:
            self._turn(name)

    def _delete(self, name: str) -> None:
        self._projects.delete(name)
        self.upstream.note(name, None)

    def _replace(self, name: str) -> None:
        self._delete(name)
        self._create(name)

    def _turn(self, name: str) -> None:
        before = self.upstream[name]
        self._projects.set_condition(name, "False" if before.ready else "True")
        self.upstream.note(name, State(before.uid, not before.ready, before.labels))

    def _relabel(self, name: str) -> None:
        before = self.upstream[name]
        labels = {"env": self._random.choice(ENVIRONMENTS)}
        self._projects.label(name, dict(labels))
        self.upstream.note(name, State(before.uid, before.ready, tuple(labels.items())))

    def _annotate(self, name: str) -> None:
        self._writes += 1
        self._projects.annotate(name, {"example.com/write": str(self._writes)})


class Faults:
    """Faults of watches, of the API server and of the daemon's process."""

    def __init__(self, workspace: Workspace, daemon: DaemonProcess, writer: ProjectWriter, random: Random) -> None:
        self._workspace = workspace
        self._daemon = daemon
        self._writer = writer
        self._random = random
        self._remaining: list[Callable[[], Awaitable[None]]] = []

    async def strike(self) -> None:
        """Inject the next fault. Each is injected once, in random order, before any is repeated."""
        if not self._remaining:
            self._remaining = [self._drop, self._compact, self._outage, self._kill, self._restart]
            self._random.shuffle(self._remaining)
        await self._remaining.pop()()

    async def _drop(self) -> None:
        self._workspace.sandbox.drop_watches()

    async def _compact(self) -> None:
        self._workspace.sandbox.compact()
        self._workspace.sandbox.drop_watches()

    async def _outage(self) -> None:
        await self._workspace.sandbox.stop()
        self._meanwhile()
        await self._workspace.sandbox.start()

    async def _kill(self) -> None:
        await self._daemon.kill()
        self._meanwhile()
        await self._daemon.start()

    async def _restart(self) -> None:
        assert await self._daemon.terminate() == 0
        self._meanwhile()
        await self._daemon.start()

    def _meanwhile(self) -> None:
        for _ in range(self._random.randrange(20)):
            self._writer.write()


async def test_views_of_subscribers_match_the_api_server_under_churn_and_faults(workspace: Workspace) -> None:
    random = Random(1)
    writer = ProjectWriter(workspace, random)
    fast = Recorder("fast", workspace.address)
    slow = Recorder("slow", workspace.address)
    restless = Recorder("restless", workspace.address, with_kubeconfigs=True)
    prod = Recorder("prod", workspace.address, "env=prod")
    recorders = (fast, slow, restless, prod)
    settings: dict[str, Any] = {
        "annotation_prefixes": ["example.com/"],
        "connectivity": {"interval": "1s"},
        "kubeconfigs": {"issuers": [token_source(workspace)]},
        # Many changes to not ready are not held; removals that a list after a fault holds are confirmed soon.
        "removals": {"hold_not_ready": False, "verify_after": "2s"},
    }
    digests = object_digests(workspace)
    async with workspace.daemon(**settings) as daemon, workspace.client() as client:
        await daemon.start()
        faults = Faults(workspace, daemon, writer, random)
        watch = client.watch()
        given: list[Event] = []

        async def follow() -> None:
            async for event in watch:
                given.append(event)  # noqa: PERF401 - as it comes

        tasks = [asyncio.create_task(recorder.run(), name=recorder.history.who) for recorder in recorders]
        tasks.append(asyncio.create_task(follow(), name="client"))

        def is_up_to_date(recorder: Recorder) -> bool:
            truth = writer.upstream.engaged(recorder.history.label_selector)
            return recorder.view == {name: (state.uid, state.labels) for name, state in truth.items()}

        for _ in range(5):  # each fault once
            slow.pause()
            for _ in range(12):
                for _ in range(random.randrange(1, 15)):
                    writer.write()
                await daemon.during(eventually(lambda: is_up_to_date(fast)))
                if random.random() < 0.3:
                    await restless.cut()
            slow.go_on()
            await faults.strike()
            await daemon.during(eventually(lambda: is_up_to_date(fast), within_s=45))
        await daemon.during(eventually(lambda: all(map(is_up_to_date, recorders))))
        await eventually(lambda: {name: cluster.uid for name, cluster in watch.clusters.items()} == _uids(fast))
        await eventually(lambda: has_good_ones(restless, workspace))
        assert await daemon.terminate() == 0
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    histories = [recorder.history for recorder in recorders]
    assert breaches(histories, writer.upstream) == []
    assert [*credential_violations(handed_to(restless, workspace, digests))] == []
    assert len(restless.given) >= 50
    assert list(alternating(given)) == []
    assert len(given) >= 50
    # The faults and changes had an effect.
    events = {history.who: list(history.events()) for history in histories}
    kinds = Counter(event.reason or event.kind for event in events["fast"])
    assert min(kinds[kind] for kind in ("ENGAGED", "UPDATED", "DELETED", "NOT_READY")) >= 10
    assert sum(event.reason == "LABELS_CHANGED" for event in events["prod"]) >= 10
    assert len(events["slow"]) < len(events["fast"])
    assert sum(batch.reset for batch in fast.history.batches()) >= 2
    resumed = [stream for stream in restless.history.streams if stream.batches and not stream.batches[0].reset]
    assert len(resumed) >= 4
    assert "Traceback" not in daemon.output


def token_source(workspace: Workspace) -> dict[str, Any]:
    workspace.sandbox.add_service_account("milo", ACCOUNT)
    kubeconfig = workspace.directory / "infrastructure"
    kubeconfig.write_text(json.dumps(workspace.sandbox.infrastructure_kubeconfig()))
    source = {"name": "tokens", "type": "token-request", "kubeconfig": str(kubeconfig)}
    return source | {"namespace": "milo", "service_account": ACCOUNT, "audiences": ["milo"]}


def object_digests(workspace: Workspace) -> dict[str, str]:
    """Return the cluster label of each Secret that tokens are bound to, by name; deleted Secrets are kept."""
    store, found = workspace.sandbox.infrastructure.api.store, dict[str, str]()

    def note() -> None:
        found.update((record.name, record.labels.get(CLUSTER_LABEL, "")) for record in store[SECRETS])

    store.listen(note)
    return found


def handed_to(recorder: Recorder, workspace: Workspace, digests: Mapping[str, str]) -> Iterator[IssuedCredential]:
    for given in recorder.given:
        claims = workspace.sandbox.tokens.claims(given.token)
        assert claims.bound is not None
        digest = sha256(given.uid.encode()).hexdigest()[:32]
        of = mark(given.uid) if digests[claims.bound.name] == digest else claims.bound.name
        yield given.issued_credential(recorder.history.who, Token(given.token, of, claims.exp))


def has_good_ones(recorder: Recorder, workspace: Workspace) -> bool:
    """Return whether the recorder has a kubeconfig of each cluster in its view, and the latest ones are not revoked."""
    last = {(given.cluster, given.uid): given.token for given in recorder.given}
    found = [last.get((name, uid)) for name, (uid, _) in recorder.view.items()]
    return all(token is not None and is_good(workspace, token) for token in found)


def is_good(workspace: Workspace, token: str) -> bool:
    bound = workspace.sandbox.tokens.claims(token).bound
    return bound is not None and workspace.sandbox.tokens.holds(bound)


def _uids(recorder: Recorder) -> dict[str, str]:
    return {name: uid for name, (uid, _) in recorder.view.items()}
