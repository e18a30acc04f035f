from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from milo_objects.kinds import Kind
from milo_objects.messages import ObjectMessage
from milo_objects.projection import ProjectedObject
from milo_objects.publication import StreamPublication
from milo_objects.scope import ClusterChanged, FleetCluster, ObjectChanged, Scope, ScopeChanged, Synced
from milo_objects.stream_commands import ReadCluster, WriteMessage

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class CountedDict(dict[Any, Any]):
    """A dictionary that counts the items that are read."""

    read = 0

    def items(self) -> Any:
        return self._counted()

    def _counted(self) -> Iterator[Any]:
        for item in super().items():
            self.read += 1
            yield item


def test_work_of_a_full_stream_is_proportional_to_what_it_refuses() -> None:
    publication = StreamPublication([Kind("v1/namespaces")], lambda _: True, 0.0)
    publication.connected(1 << 20, 0.0, is_same=False)
    scope = Scope("web", "i", "v1/namespaces")
    publication.apply(ClusterChanged(FleetCluster(name="web", incarnation="i", uid="u")), 0.0)
    publication.apply(ScopeChanged(scope, Synced(NOW)), 0.0)
    for number in range(1000):
        publication.apply(ObjectChanged(scope, ProjectedObject("", f"n{number}", f"u{number}")), 0.0)
    (published,) = publication.clusters["web"].scopes.values()
    refused = published.refused = CountedDict()
    sequence = 0
    while commands := publication.due(0.0):
        for command in commands:
            sequence += 1
            if isinstance(command, ReadCluster):
                publication.read(command, [], 0, 0.0)
            elif isinstance(command, WriteMessage) and isinstance(command.message, ObjectMessage):
                publication.full(command, "full", 0.0)
            elif isinstance(command, WriteMessage):
                publication.written(command, sequence, 0.0)
    assert publication.refused == 1000
    assert refused.read <= 2000
