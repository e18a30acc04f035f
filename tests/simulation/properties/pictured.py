"""A fleet that changes, with a picture of the whole of it at every revision: what readers are held against."""

import msgspec
from hypothesis.stateful import RuleBasedStateMachine

from milo_discoveryd.model.cluster import Cluster, DisengageReason, Draining
from milo_discoveryd.registry.log import Retention
from tests.unit.registry.fleets import NamedLog, cluster

Picture = dict[str, Cluster]


class Pictured(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log = NamedLog(lambda event: b"", Retention())
        self.picture: Picture = {}
        self.pictures: list[Picture] = [{}]
        self.now = 0.0
        self.changes = 0

    def engage_or_update(self, name: str, labels: dict[str, str], organization: str) -> None:
        before = self.picture.get(name)
        if before is None:
            made = self.log.engage(
                self.log.entry(name), lambda revision: self.made(name, revision, labels, organization)
            )
        else:
            made = self.made(name, before.incarnation, labels, organization)
            made = msgspec.structs.replace(made, draining=before.draining)
            self.log.update(self.log.entry(made.target.name), made, self.now)
        self.happened({**self.picture, name: made})

    def drain(self, name: str, labels: dict[str, str], organization: str) -> None:
        before = self.picture.get(name)
        if before is not None and before.draining is None:
            made = msgspec.structs.replace(before, draining=Draining(DisengageReason.NOT_READY, "", self.now))
            self.log.update(self.log.entry(name), made, self.now)
            self.happened({**self.picture, name: made})

    def replace(self, name: str, labels: dict[str, str], organization: str) -> None:
        if name in self.picture:
            made = self.log.replace(
                self.log.entry(name), "", lambda revision: self.made(name, revision, labels, organization), self.now
            )
            self.happened({**self.picture, name: made})

    def disengage(self, name: str, labels: dict[str, str], organization: str) -> None:
        if name in self.picture:
            self.log.disengage(self.log.entry(name), DisengageReason.DELETED, "", self.now)
            self.happened({other: each for other, each in self.picture.items() if other != name})

    def made(self, name: str, incarnation: int, labels: dict[str, str], organization: str) -> Cluster:
        """No two are equal, so that nothing old passes for something new."""
        self.changes += 1
        return cluster(name, incarnation, labels=labels, organization=organization, version=str(self.changes))

    def happened(self, picture: Picture) -> None:
        self.picture = picture
        self.pictures.append(picture)
