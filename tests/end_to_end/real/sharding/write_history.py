"""All writes of the operators in the order of the API server, checked for one writer per project at a time. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(slots=True)
class Tenure:
    """The uninterrupted writes of one engagement to one project's object."""

    engagement: str
    began_at: float
    ended_at: float
    writes: int = 1

    @property
    def member(self) -> str:
        return self.engagement.partition("/")[0]


@dataclass(frozen=True, slots=True)
class HandOver:
    project: str
    former: str
    next: str
    at: float
    """The time of the first write of the next engagement."""
    gap_s: float
    """The time since the last write of the former engagement."""


class WriteHistory:
    def __init__(self) -> None:
        self.tenures: dict[str, list[Tenure]] = {}
        self.breaches: list[str] = []
        self.writes = 0

    def apply(self, config_map: dict[str, Any], at: float) -> None:
        """Add a version of an object, each of which is one write."""
        metadata = config_map["metadata"]
        project, engagement = metadata["name"], config_map["data"]["engagement"]
        self.writes += 1
        managers = {
            entry["manager"]
            for entry in metadata["managedFields"]
            if "f:engagement" in entry["fieldsV1"].get("f:data", {})
        }
        if managers != {engagement.partition("/")[0]}:
            self.breaches.append(f"{project}: the fields of {engagement} are managed by {sorted(managers)}")
        tenures = self.tenures.setdefault(project, [])
        if tenures and tenures[-1].engagement == engagement:
            tenures[-1].ended_at = at
            tenures[-1].writes += 1
            return
        if any(tenure.engagement == engagement for tenure in tenures):
            self.breaches.append(f"{project}: {engagement} wrote again after {tenures[-1].engagement}")
        tenures.append(Tenure(engagement, at, at))

    def last(self, project: str) -> Tenure | None:
        tenures = self.tenures.get(project)
        return tenures[-1] if tenures else None

    def hand_overs(self, since: float) -> Iterator[HandOver]:
        """Yield the changes from one engagement to the next since a time."""
        for project, tenures in self.tenures.items():
            for former, following in pairwise(tenures):
                if following.began_at >= since:
                    gap_s = following.began_at - former.ended_at
                    yield HandOver(project, former.member, following.member, following.began_at, gap_s)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
