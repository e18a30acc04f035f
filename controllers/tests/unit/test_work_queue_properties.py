"""Properties of the work queue: no change is lost, and no object is in flight twice."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from milo_controllers.work_queue import (
    Done,
    Failed,
    Interrupted,
    ObjectKey,
    Outcome,
    Parked,
    Priority,
    QueuePolicy,
    Stopped,
    Work,
    WorkQueue,
)

PER_CLUSTER = 2
WORKERS = 3
CLUSTERS = st.sampled_from("abc")
NAMES = st.sampled_from("wxyz")
OUTCOMES = st.sampled_from(
    [Done(), Done(), Done(requeue_after_s=7.0), Failed(), Failed(), Stopped("no"), Parked(), Interrupted()]
)


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = WorkQueue(QueuePolicy(), lambda: 0.5, self.now, per_cluster=PER_CLUSTER, workers=WORKERS)
        self.incarnations: dict[str, int] = {}
        self.open: set[tuple[str, int]] = set()
        self.due: set[ObjectKey] = set()
        """Objects that changed since they were last taken, or whose reconcile is to be repeated."""
        self.may: set[ObjectKey] = set()
        """Objects that may be taken without a change: after a requeue or a failure."""
        self.in_flight: dict[ObjectKey, Work] = {}
        self.parked: set[ObjectKey] = set()
        self.engaged = 0

    @rule(cluster=CLUSTERS)
    def engage(self, cluster: str) -> None:
        if cluster not in self.incarnations:
            self.engaged += 1
            self.incarnations[cluster] = self.engaged
            self.queue.engage(cluster, self.engaged, ("ab" if cluster in "ab" else "",))

    @rule(cluster=CLUSTERS)
    def sync(self, cluster: str) -> None:
        if cluster in self.incarnations:
            self.open.add((cluster, self.incarnations[cluster]))
            self.queue.open(cluster, self.incarnations[cluster])

    @rule(cluster=CLUSTERS)
    def disengage(self, cluster: str) -> None:
        if cluster in self.incarnations:
            dropped = cluster, self.incarnations.pop(cluster)
            self.queue.drop(*dropped)
            self.open.discard(dropped)
            for keys in (self.due, self.may, self.parked):
                keys.difference_update({key for key in keys if key[:2] == dropped})

    @rule(cluster=CLUSTERS, name=NAMES, priority=st.sampled_from(Priority))
    def change(self, cluster: str, name: str, priority: Priority) -> None:
        key = ObjectKey(cluster, self.incarnations.get(cluster, 0), "", name)
        self.queue.add(key, self.now, priority)
        if cluster in self.incarnations:
            self.due.add(key)
            self.parked.discard(key)

    @rule(cluster=CLUSTERS)
    def unpark(self, cluster: str) -> None:
        if cluster in self.incarnations:
            ended = {key for key in self.parked if key.cluster == cluster}
            for key in self.queue.parked(cluster, self.incarnations[cluster]):
                self.queue.unpark(key, self.now)
            self.due |= ended
            self.parked -= ended

    @rule(seconds=st.sampled_from([0.0, 0.1, 5.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take_next(self) -> None:
        self.taken()

    def taken(self) -> bool:
        work = self.queue.take_next(self.now)
        if work is None:
            return False
        key = work.key
        assert key not in self.in_flight
        assert key[:2] in self.open
        assert key in self.due | self.may
        self.in_flight[key] = work
        self.due.discard(key)
        self.may.discard(key)
        return True

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), outcome=OUTCOMES)
    def finish(self, data: st.DataObject, outcome: Outcome) -> None:
        self.finished(data.draw(st.sampled_from(sorted(self.in_flight))), outcome)

    def finished(self, key: ObjectKey, outcome: Outcome) -> None:
        delay_s = self.queue.done(key, outcome, self.now)
        self.queue.freed(self.in_flight.pop(key))
        if self.incarnations.get(key.cluster) != key.incarnation:
            assert delay_s is None
            return
        if delay_s is not None:
            self.may.add(key)
        if isinstance(outcome, Failed):
            self.may.add(key)
        if isinstance(outcome, Interrupted):
            self.due.add(key)
        if isinstance(outcome, Parked) and key not in self.due:
            self.parked.add(key)

    @invariant()
    def no_cluster_exceeds_its_share(self) -> None:
        for cluster, incarnation in self.incarnations.items():
            assert sum(key[:2] == (cluster, incarnation) for key in self.in_flight) <= PER_CLUSTER

    @invariant()
    def further_objects_of_clusters_leave_a_worker(self) -> None:
        assert sum(work.is_further for work in self.in_flight.values()) <= WORKERS - 1

    def teardown(self) -> None:
        """Finish everything, and check that every change was reconciled."""
        for cluster, incarnation in self.incarnations.items():
            self.open.add((cluster, incarnation))
            self.queue.open(cluster, incarnation)
        self.now += 1e6
        while True:
            for key in tuple(self.in_flight):
                self.finished(key, Done())
            if not self.taken():
                break
        assert self.due == set()
        assert len(self.queue) == 0
        assert self.queue.next_at is None


TestQueue = Queue.TestCase
