"""The records of clusters, as readers see them."""

from collections.abc import Iterator
from typing import Protocol

from milo_discoveryd.model.cluster import Cluster
from milo_discoveryd.registry.registry import ClusterRecord, ObjectState


class ClusterRecords(Protocol):
    """What is known of all clusters, for readers."""

    @property
    def engaged(self) -> int: ...

    @property
    def draining_count(self) -> int: ...

    @property
    def outdated(self) -> int: ...

    @property
    def unreachable(self) -> int: ...

    def __getitem__(self, name: str) -> ClusterRecord | None: ...

    def items(self) -> Iterator[tuple[str, ClusterRecord]]: ...

    def count(self, state: ObjectState) -> int: ...

    def clusters(self) -> Iterator[Cluster]: ...

    def needs_probe(self, name: str, incarnation: int) -> bool: ...
