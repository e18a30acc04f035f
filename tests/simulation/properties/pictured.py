"""A changing fleet with a snapshot of every revision, as the model that readers are compared with."""

import msgspec
from hypothesis.stateful import RuleBasedStateMachine

from milo_discoveryd.log.change_log import Retention
from milo_discoveryd.model.cluster import Cluster, DisengageReason, Drain
from tests.unit.fleet.fleets import NamedLog, cluster

Snapshot = dict[str, Cluster]


class ModeledFleet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log = NamedLog(lambda event: b"", Retention())
        self.snapshot: Snapshot = {}
        self.snapshots: list[Snapshot] = [{}]
        self.now = 0.0
        self.changes = 0

    def engage_or_update(self, name: str, labels: dict[str, str], organization: str) -> None:
        before = self.snapshot.get(name)
        if before is None:
            changed = self.log.engage(
                self.log.entry(name), lambda revision: self.make_cluster(name, revision, labels, organization)
            )
        else:
            changed = self.make_cluster(name, before.incarnation, labels, organization)
            if before.draining is not None:
                changed = msgspec.structs.replace(changed, draining=before.draining)
            self.log.update(self.log.entry(changed.target.name), changed, self.now)
        self.record({**self.snapshot, name: changed})

    def drain(self, name: str, labels: dict[str, str], organization: str) -> None:
        before = self.snapshot.get(name)
        if before is not None and before.draining is None:
            changed = msgspec.structs.replace(before, draining=Drain(DisengageReason.NOT_READY, "", self.now))
            self.log.update(self.log.entry(name), changed, self.now)
            self.record({**self.snapshot, name: changed})

    def replace(self, name: str, labels: dict[str, str], organization: str) -> None:
        if name in self.snapshot:
            changed = self.log.replace(
                self.log.entry(name),
                "",
                lambda revision: self.make_cluster(name, revision, labels, organization),
                self.now,
            )
            self.record({**self.snapshot, name: changed})

    def disengage(self, name: str, labels: dict[str, str], organization: str) -> None:
        if name in self.snapshot:
            self.log.disengage(self.log.entry(name), DisengageReason.DELETED, "", self.now)
            self.record({other: value for other, value in self.snapshot.items() if other != name})

    def make_cluster(self, name: str, incarnation: int, labels: dict[str, str], organization: str) -> Cluster:
        """Return a cluster that differs from all others, so that an outdated one is detected."""
        self.changes += 1
        return cluster(name, incarnation, labels=labels, organization=organization, version=str(self.changes))

    def record(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.snapshots.append(snapshot)
