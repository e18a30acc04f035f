"""One simulation run of a seed: a daemon, its API server and its subscribers in one process, on virtual time."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from milo_discoveryd.engagement.subscriber import SubscriberKey
from milo_discoveryd.model.cluster import Cluster, DisengageReason
from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.rights.caller_selector import caller_key
from milo_discoveryd.server.calls.revision import wire_incarnation
from milo_kube.reflect.view_status import ViewState
from tests.end_to_end.process.issued_credentials import IssuedCredential, credential_violations, mark
from tests.end_to_end.process.validators import alternating, breaches
from tests.simulation.properties.api_server import ApiObject, Server
from tests.simulation.seeded.api import Api
from tests.simulation.seeded.daemon import CALLER, Daemon, Disk, Traits
from tests.simulation.seeded.loop import VirtualLoop, run_on
from tests.simulation.seeded.request_faults import EMPTY_LIST
from tests.simulation.seeded.subscriber import Subscriber
from tests.simulation.seeded.tokens import TokenApi
from tests.simulation.seeded.watch_faults import WatchFaultInjector
from tests.simulation.seeded.worker import Worker
from tests.simulation.seeded.world import NAMES, World
from tests.support.logs import capture_logs

STEPS = (6, 13)
PAUSES_S = (0.0, 0.0, 0.01, 0.3, 2.0, 10.0, 45.0)
RECOVERY_LIMIT_S = 600.0
"""Longer than any legitimate wait: for a verification, a server's Retry-After or a grace period."""
CHECK_INTERVAL_S = 1.0
REVOKED_WITHIN_S = 150.0
"""Longer than a revocation takes with a minute between failed attempts."""
ADMINISTRATOR_DELAY_S = 100.0
"""How long held removals wait for an administrator."""


@dataclass
class Outcome:
    seed: int
    breaches: list[str]
    recovery_s: float
    """The time from the end of all faults until every subscriber had the right state."""
    waited_for: frozenset[str]
    """What the daemon waits for by design, beyond the connection to the API server."""
    events: int
    handed: int
    """The number of issued credentials."""
    injected: Counter[str]
    requests: Counter[str]
    virtual_s: float
    notes: list[tuple[float, tuple[object, ...]]] = field(default_factory=list)
    drained: int = 0
    """The number of releases."""

    @property
    def history(self) -> str:
        return "\n".join(f"{at:10.3f}  {' '.join(map(str, parts))}" for at, parts in self.notes)


def simulate(seed: int, *, drain_s: float = 0.0) -> Outcome:
    """Run a seed. With `drain_s`, the daemon drains, and two of the subscribers confirm releases."""
    random = Random(seed)
    loop = VirtualLoop(random)
    with capture_logs() as lines:
        outcome = run_on(loop, SimulationRun(seed, random, loop, drain_s).run())
        outcome.breaches += lines.errors
        return outcome


class SimulationRun:
    def __init__(self, seed: int, random: Random, loop: VirtualLoop, drain_s: float = 0.0) -> None:
        self._seed = seed
        self._drain_s = drain_s
        self._wrong_ends: list[str] = []
        self._is_restored = False
        """Whether a backup was restored and nothing has been written since."""
        self._random = random
        self._clock = loop.time
        self._wall = lambda: loop.wall
        self._notes: list[tuple[float, tuple[object, ...]]] = []
        self._handed: list[IssuedCredential] = []
        self._runs = 0
        self._is_first_list_bad = False
        """Whether the first list of the running daemon lacks objects."""
        self._daemon: Daemon | None = None
        self._waited_for: set[str] = set()

    async def run(self) -> Outcome:
        random, drain_s = self._random, self._drain_s
        self._traits = Traits.drawn(random)
        self._note("traits:", self._traits)
        self._disk = Disk(self._note) if self._traits.has_memory else None
        self._server = Server()
        self._world = World(self._server, random)
        self._api = Api(self._server, random, self._note, lies=lambda: self._can_detect_lies)
        self._watch_faults = WatchFaultInjector(self._api, self._world, random)
        self._tokens = TokenApi(random, self._api.inject, self._traits.token_life_s, self._wall)
        self._read = asyncio.Event()
        self._subscribers = [
            Subscriber(
                who,
                selector,
                lambda: self._daemon,
                random,
                self._note,
                self._read.set,
                with_kubeconfigs=who == "operator",
                worker=self._worker(who) if drain_s and who != "steady" else None,
            )
            for who, selector in (("steady", ""), ("operator", ""), ("red", "team=red"))
        ]
        for _ in range(random.randrange(2 * len(NAMES))):
            self._world.change()
        self._start()
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(subscriber.run(), name=subscriber.history.who) for subscriber in self._subscribers
            ]
            for _ in range(random.randint(*STEPS)):
                self._api.fault_rate = random.choice((0.0, 0.0, 0.3, 0.8))
                await self._step()
                await asyncio.sleep(random.choice(PAUSES_S))
            recovery_s = await self._heal()
            await self._until(lambda: self._has_recovered() and not self._unrevoked, within_s=REVOKED_WITHIN_S)
            judged = self._violations()
            for task in running:
                task.cancel()
            for worker in self._workers:
                worker.stop()
        assert self._daemon is not None
        await self._daemon.kill()
        return Outcome(
            self._seed,
            judged,
            recovery_s,
            frozenset(self._waited_for),
            sum(len(batch.events) for subscriber in self._subscribers for batch in subscriber.history.batches()),
            len(self._handed),
            self._api.injected,
            self._api.requests,
            self._clock(),
            self._notes,
            drained=sum(worker.released for worker in self._workers),
        )

    @property
    def _workers(self) -> list[Worker]:
        return [subscriber.worker for subscriber in self._subscribers if subscriber.worker is not None]

    def _worker(self, who: str) -> Worker:
        return Worker(who, lambda: self._daemon, self._random, self._note)

    def _cluster_ended(self, ended: Cluster) -> None:
        """Check a disengagement, in the step in which it happens."""
        if self._daemon is None:
            return  # it ends
        draining, record = ended.draining, self._daemon.fleet[ended.target.name]
        assert record is not None
        # The name may have been engaged and disengaged again in the same commit.
        reason = next(
            transition.reason for transition in reversed(record.past) if transition.incarnation == ended.incarnation
        )
        if reason is DisengageReason.NOT_READY and draining is None:
            self._check_not_ready(ended)
        if self._is_restored and not self._ended_before_backup(ended):
            self._wrong_ends.append(f"restore: {ended.target.name} was disengaged by a restored server")
        is_over = reason not in (DisengageReason.NOT_READY, DisengageReason.LABELS_CHANGED)
        if is_over or (draining is not None and self._wall() >= draining.deadline - 1e-6):
            return
        incarnation = wire_incarnation(self._daemon.epoch, ended.incarnation)
        for subscriber in self._subscribers:
            worker = subscriber.worker
            handler = None if worker is None else worker.handlers.get(ended.target.name)
            if worker is None or handler is None or handler.cluster.incarnation != incarnation:
                continue
            is_known = self._daemon.fleet.releases.knows(SubscriberKey(caller_key(CALLER), worker.who))
            if is_known and subscriber.selects(ended):
                self._wrong_ends.append(f"draining: {ended.target.name} was disengaged while {worker.who} worked on it")

    def _ended_before_backup(self, ended: Cluster) -> bool:
        """Return whether a cluster was disengaged before the backup, which has the version that the daemon had seen."""
        obj = self._server.objects.get(ended.target.name)
        is_engaged = obj is not None and obj.uid == ended.object_uid and obj.engages
        # Clusters from a state file have no version.
        is_known = ended.source_version != "" and int(ended.source_version) <= self._server.version
        return is_known and not is_engaged

    def _check_not_ready(self, ended: Cluster) -> None:
        """Check that the source was followed, and that the object was not ready in a version after the known one."""
        assert self._daemon is not None
        name, fleet, now = ended.target.name, self._daemon.fleet, self._clock()

        def check_source() -> None:
            if (fleet.status.last_contact or 0.0) < now:
                self._wrong_ends.append(f"not ready: {name} was disengaged while the source was lost")

        if fleet.status.state is ViewState.STALE:
            # The changes that end the loss of the source are applied before its status changes.
            asyncio.get_running_loop().call_later(0.001, check_source)
        seen_at = self._world.not_ready_at.get(ended.object_uid, 0)
        if not self._world.upstream.went_back and seen_at <= int(ended.source_version or 0):
            known = ended.source_version
            self._wrong_ends.append(f"not ready: {name} was last in version {seen_at}, and is known in {known}")

    # --- changes and faults ---

    async def _step(self) -> None:
        steps = (
            self._change_objects,
            self._inject_watch_fault,
            self._disturb_subscriber,
            self._request_credentials,
            self._inject_token_fault,
            self._restart_server,
        )
        weights = (8, 6, 4, 2, 2, 1)
        rare = (
            self._restart_daemon,
            self._freeze_etcd,
            self._replace_server,
            self._restore_backup,
            self._restart_daemon_with_bad_list,
        )
        await self._random.choices((*steps, *rare), (*weights, 1, 0.5, 0.3, 0.3, 0.3))[0]()

    async def _change_objects(self) -> None:
        for _ in range(self._random.choice((1, 1, 2, 4))):
            self._world.change(may_garble=self._has_read_all)
            if self._random.random() < 0.5:
                self._api.ring()
                await asyncio.sleep(0)
        self._note("upstream:", self._server.version, *(f"{n}={t.uid}" for n, t in self._server.objects.items()))
        if self._random.random() < 0.1:
            self._server.compact()
        self._api.ring()

    async def _restart_server(self) -> None:
        self._api.inject("F1", "the server restarts")
        self._api.cut()
        self._api.down_until = self._clock() + self._random.choice((0.1, 1.0, 20.0))
        if self._random.random() < 0.5:
            self._api.busy_until = self._api.down_until + self._random.choice((1.0, 30.0))
        if self._random.random() < 0.5:
            self._server.compact()

    async def _freeze_etcd(self) -> None:
        self._api.freeze_etcd(self._random.choice((1.0, 20.0, 60.0, 200.0)))
        if self._random.random() < 0.5:
            await asyncio.sleep(self._api.frozen_until - self._clock())

    async def _restart_daemon(self) -> None:
        assert self._daemon is not None
        dying, self._daemon = self._daemon, None
        if self._random.random() < 0.5:
            self._api.inject("F34", "the daemon receives SIGTERM")
            await dying.drain()
        else:
            self._api.inject("F35", "the daemon is killed")
            await dying.kill()
        is_torn = self._disk is not None and self._disk.data is not None and self._random.random() < 0.2
        if is_torn and self._disk.data:  # an earlier fault may have emptied the file
            self._api.inject("F37", "the state file is torn")
            self._disk.data = self._disk.data[: self._random.randrange(len(self._disk.data))]
        if self._random.random() < 0.5:
            await self._change_objects()
        self._repair_objects()
        await asyncio.sleep(self._random.choice((0.0, 1.0, 10.0)))
        self._start()

    def _repair_objects(self) -> None:
        # A new daemon without an earlier state of a malformed object does not engage the object's cluster.
        self._world.repair_objects()

    async def _restart_daemon_with_bad_list(self) -> None:
        """Restart the daemon while lists are empty, but too briefly for a second list to confirm the first.

        A subscriber with a single known cluster is no evidence: see RemovalGuard.
        """
        if not await self._is_calm() or not await self._until(self._know_no_single_cluster, within_s=100.0):
            return
        assert self._daemon is not None
        self._api.inject("F93", "the daemon is killed while lists are empty")
        dying, self._daemon = self._daemon, None
        await dying.kill()
        self._repair_objects()
        self._api.only = EMPTY_LIST
        self._start()
        self._is_first_list_bad = True
        await asyncio.sleep(self._random.choice((0.1, 5.0, RemovalLimits().verify_after_s - 5.0)))
        self._api.only = None

    def _know_no_single_cluster(self) -> bool:
        return all(subscriber.has_read_all and len(subscriber.view) != 1 for subscriber in self._subscribers)

    async def _replace_server(self) -> None:
        """Replace the server for a while with a different one at the same address.

        The daemon recognizes a different server only by several known clusters, so this fault is skipped with fewer.
        """
        if not await self._is_calm() or not self._knows_several_clusters:
            return
        self._api.inject("F21", "another server answers")
        other = Server()
        other.version = self._random.choice((1, 1000))
        for name in "xyz":
            other.put(name, ApiObject(f"other-{name}", 0, True, True, True, 1))
        other.compact()
        own, self._api.server = self._api.server, other
        self._api.cut()
        await asyncio.sleep(self._random.choice((1.0, 40.0, 200.0)))
        self._api.server = own
        self._api.cut()
        self._api.needs_relist = True

    async def _restore_backup(self) -> None:
        """Restore an earlier backup.

        Nothing is written until the daemon has read a list, since the restore cannot be detected afterwards. A daemon
        with a state file may be killed before or after it has read that list.
        """
        self._server.back_up()
        await self._change_objects()
        if not await self._is_calm() or not self._api.has_bookmarked:
            return
        # The daemon may have read the last changes before the restore without applying them yet.
        await asyncio.sleep(0.1)
        self._api.inject("F22", "a backup is restored")
        killed = self._random.choice(("before", "after", "never")) if self._disk is not None else "never"
        lists = self._api.lists
        if killed == "before":
            await self._kill_daemon()
        self._world.restore()
        self._is_restored = killed == "never" or self._stored_later_versions
        self._api.cut()
        if killed == "before":
            self._start()
        await self._until(lambda: self._api.lists > lists)
        await self._until(lambda: self._daemon is None or self._daemon.has_settled)
        if killed == "after":
            await self._kill_daemon()
            self._is_restored = self._stored_later_versions
            self._start()
            await self._until(lambda: self._api.lists > lists + 1)
            await self._until(lambda: self._daemon is None or self._daemon.has_settled)
        self._is_restored = False

    @property
    def _stored_later_versions(self) -> bool:
        """Whether the state file, which is written at intervals, has later versions than the restored server."""
        stored = None if self._disk is None else self._disk.load()
        return stored is not None and int(stored.highest_version or 0) > self._server.version

    async def _kill_daemon(self) -> None:
        assert self._daemon is not None
        self._api.inject("F70", "the daemon is killed during a restore")
        dying, self._daemon = self._daemon, None
        await dying.kill()

    @property
    def _knows_several_clusters(self) -> bool:
        assert self._daemon is not None
        engaged = {(cluster.target.name, cluster.target.uid) for cluster in self._daemon.fleet.clusters()}
        return len(engaged) > 1 and engaged == {(n, s.uid) for n, s in self._world.upstream.engaged("").items()}

    async def _is_calm(self) -> bool:
        """Stop the random faults of requests, and return whether the daemon caught up.

        Rare faults need this precondition, and are skipped otherwise.
        """
        self._api.fault_rate = 0.0
        return await self._until(lambda: self._has_listed and self._is_followed, within_s=100.0)

    @property
    def _is_followed(self) -> bool:
        return self._daemon is not None and self._daemon.is_quiet and self._api.has_sent_all

    async def _until(self, holds: Callable[[], bool], within_s: float = 1000.0) -> bool:
        began = self._clock()
        while not holds():
            if self._clock() > began + within_s:
                return False
            await asyncio.sleep(1.0)
        return True

    async def _disturb_subscriber(self) -> None:
        subscriber = self._random.choice(self._subscribers)
        match self._random.choice(("cut", "cut", "pause", "slow", "go on", "go on")):
            case "cut":
                self._api.inject("F47", f"{subscriber.history.who} is cut")
                subscriber.cut()
            case "pause":
                self._api.inject("F44", f"{subscriber.history.who} stops reading")
                subscriber.pause()
            case "slow":
                self._api.inject("F44", f"{subscriber.history.who} reads slowly")
                subscriber.slow_s = self._random.choice((0.1, 1.0, 5.0))
            case _:
                subscriber.go_on()

    async def _inject_watch_fault(self) -> None:
        self._watch_faults.strike()

    async def _inject_token_fault(self) -> None:
        match self._random.choice(("fault", "fault", "down", "withdrawn")):
            case "fault":
                self._tokens.fault_rate = self._random.choice((0.0, 0.5, 0.9))
            case "down":
                self._api.inject("F50", "the token API is down")
                outage_s = self._random.choice((1.0, 20.0, 100.0))
                self._tokens.down_until = self._clock() + outage_s
                if self._random.random() < 0.5:
                    await asyncio.sleep(0.9 * outage_s)
                    await self._request_credentials()
            case _:
                self._tokens.withdraw()

    async def _request_credentials(self) -> None:
        """Request credentials, and change objects while the requests may be in flight."""
        for _ in range(self._random.choice((1, 3))):
            subscriber = self._random.choice(self._subscribers)
            subscriber.ask(self._random.choice(NAMES), self._random.choice((None, 10, 60, 3600)))
        await asyncio.sleep(self._random.choice((0.0, 0.0, 0.05)))
        await self._change_objects()

    # --- recovery ---

    async def _heal(self) -> float:
        """End all faults; return how long the recovery took."""
        self._api.fault_rate = self._api.down_until = self._api.busy_until = self._api.frozen_until = 0.0
        self._tokens.fault_rate = self._tokens.down_until = 0.0
        self._world.repair_objects()
        for subscriber in self._subscribers:
            subscriber.go_on()
        for opened in list(self._api.open):
            opened.without_bookmarks = opened.is_backwards = False
            if opened.mute:
                self._waited_for.add("a mute watch")
        self._note("all faults have ended")
        healed_at = self._clock()
        if self._api.needs_relist:
            self._server.version += 1  # represents an unrelated write
            self._server.compact()
            self._api.cut()
        self._api.ring()
        return await self._settled(healed_at)

    async def _settled(self, healed_at: float) -> float:
        """Wait for the recovery, which is checked after each batch, and at intervals for states that cause no batch."""
        self._truth = {
            selector: {
                name: (cluster.uid, cluster.labels) for name, cluster in self._world.upstream.engaged(selector).items()
            }
            for selector in ("", "team=red")
        }
        self._patient_until = healed_at + ADMINISTRATOR_DELAY_S
        while not self._has_recovered() and self._clock() < healed_at + RECOVERY_LIMIT_S:
            await self._administrate()
            self._read.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._read.wait()
        return self._clock() - healed_at

    async def _administrate(self) -> None:
        assert self._daemon is not None
        self._daemon.check()
        if self._daemon.holds_for_good or (self._daemon.holds_removals and self._clock() > self._patient_until):
            # A fleet of which every object was replaced looks like another server's, and the state after a restore is
            # held: an administrator accepts it, or starts the daemon without its state file.
            self._waited_for.add("an administrator")
            if self._seed % 2:
                self._daemon.collection.accept(self._clock())
            else:
                await self._daemon.kill()
                if self._disk is not None:
                    self._disk.data = None
                self._start()
            self._patient_until = self._clock() + ADMINISTRATOR_DELAY_S
        elif self._daemon.holds_removals:
            self._waited_for.add("a verification")
        elif self._daemon.source.due_at is not None:
            self._waited_for.add("a grace")
        if self._daemon.defers_rechecks:
            self._waited_for.add("a bookmark")
        if self._daemon.has_older_reads:
            self._waited_for.add("a replica")

    def _has_recovered(self) -> bool:
        assert self._daemon is not None
        return (
            self._daemon.is_quiet
            and self._api.has_sent_all
            and all(
                subscriber.has_read_all
                and subscriber.can_work
                and subscriber.view == self._truth[subscriber.history.label_selector]
                and (subscriber.worker is None or subscriber.worker.handlers.keys() == subscriber.view.keys())
                for subscriber in self._subscribers
            )
        )

    def _violations(self) -> list[str]:
        # Clusters drain for subscribers with a worker, and the validators would report these as wrongly engaged.
        histories = [subscriber.history for subscriber in self._subscribers if subscriber.worker is None]
        found = breaches(histories, self._world.upstream, forgets=self._traits.forgets)
        found += (f"credentials: {breach}" for breach in credential_violations(self._handed))
        found += (f"credentials: the tokens of {uid} were not revoked" for uid in self._unrevoked)
        found += self._wrong_ends
        assert self._daemon is not None
        if not self._daemon.is_quiet:
            found.append("daemon: it has work left at the end")
        for subscriber in self._subscribers:
            found += subscriber.broken
            found += (f"client: {subscriber.history.who}: {breach}" for breach in alternating(subscriber.given))
            if not subscriber.has_read_all or subscriber.view != self._truth[subscriber.history.label_selector]:
                found.append(f"client: {subscriber.history.who}: its view is not the server's state at the end")
            worker = subscriber.worker
            if worker is not None:
                found += worker.broken
                if worker.handlers.keys() != subscriber.view.keys():
                    found.append(f"draining: {worker.who} works on {sorted(worker.handlers)} at the end")
            if not subscriber.can_work:
                found.append(f"client: {subscriber.history.who}: it lacks a credential at the end")
        return found

    @property
    def _unrevoked(self) -> list[str]:
        """The UIDs of clusters that this run of the daemon has disengaged, and whose tokens are still valid."""
        assert self._daemon is not None
        ledger = self._daemon.ledger
        over = ledger.disengaged - {uid for uid, _ in ledger.engaged.values()}
        return sorted(uid for uid in over if self._tokens.has_secret_of(mark(uid)))

    # --- parts ---

    @property
    def _has_listed(self) -> bool:
        """Whether the daemon has a complete list of its own; before that it cannot detect incomplete lists."""
        daemon = self._daemon
        return (
            daemon is not None
            and daemon.fleet.synced
            and not daemon.source.is_restored
            and daemon.collection.held is None
        )

    @property
    def _has_read_all(self) -> bool:
        """Whether the daemon has read every object: it does not engage one that was malformed from the beginning."""
        daemon = self._daemon
        is_verified = daemon is not None and daemon.collection.unverified is None
        return self._has_listed and (is_verified or not self._is_first_list_bad)

    @property
    def _can_detect_lies(self) -> bool:
        """Whether the daemon can detect incomplete lists: it accepts two lists that lack the same clusters."""
        return self._has_listed and self._daemon is not None and not self._daemon.fleet.waiting

    def _start(self) -> None:
        self._runs += 1
        self._is_first_list_bad = False
        self._api.has_bookmarked = False
        self._note("the daemon starts")
        self._daemon = Daemon(
            self._api,
            self._tokens,
            f"{self._seed & 0xFFFFFFFF:08x}{self._runs:08x}",
            self._traits,
            self._disk,
            self._random,
            self._note,
            self._handed.append,
            drain_s=self._drain_s,
            ended=self._cluster_ended,
        )

    def _note(self, *parts: object) -> None:
        self._notes.append((self._clock(), parts))
