"""A model of an API server, without time or I/O: objects, versions, watches, and all that can go wrong with them.

It keeps what was true and when, so that whoever claims that something ended can be asked for evidence.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from milo_discoveryd.model.cluster import DisengageReason, Target
from milo_discoveryd.model.objects import KubeObject
from milo_discoveryd.model.observation import Observation, Outside
from milo_discoveryd.modes.mode import Setting
from milo_discoveryd.modes.project import ProjectMode

_MODE = ProjectMode(Setting(project_endpoint="https://api.example.com"))


def observe(obj: KubeObject) -> Observation:
    """As the daemon does: the mode's judgement, of what the selector covers."""
    metadata = obj.metadata
    if (metadata.labels or {}).get("in") == "yes":
        return _MODE.observe(obj)
    return Outside(metadata.name, metadata.uid, metadata.resourceVersion, "not selected")


def place_of(stored: Target) -> tuple[str, ...]:
    return _MODE.place_of(stored.name, stored.uid)


@dataclass(frozen=True)
class Thing:
    uid: str
    version: int
    ready: bool
    inside: bool
    readable: bool
    content: int
    team: str = "red"

    @property
    def engages(self) -> bool:
        return self.inside and self.ready

    def encoded(self, name: str) -> dict[str, Any]:
        labels: Any = {"in": "yes" if self.inside else "no", "content": str(self.content), "team": self.team}
        return {
            "metadata": {
                "name": name,
                "uid": self.uid,
                "resourceVersion": str(self.version),
                "labels": labels if self.readable else "nonsense",
            },
            "status": {"conditions": [{"type": "Ready", "status": "True" if self.ready else "False"}]},
        }


@dataclass
class Happening:
    version: int
    kind: str
    name: str
    thing: Thing


@dataclass
class Watch:
    """`position` is None for one from a version of the future: it is silent for ever."""

    position: int | None
    initial: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)


class Server:
    def __init__(self) -> None:
        self.version = 1
        self.things: dict[str, Thing] = {}
        self.history: list[Happening] = []
        self.compacted = 0
        self.truth: list[dict[str, Thing]] = [{}]
        """Everything, after each change of anything."""
        self.backups: list[tuple[int, dict[str, Thing]]] = []
        self.told = 0
        """The latest version that a list or a watch told of."""
        self.looked_at = 0
        """The latest version of an object that was asked for by name."""
        self.is_behind = False
        """It was restored to before what it had told, and nobody has seen a list since. Who had read beyond can tell as
        long as it has not caught up, and nobody can tell once it has: so in this model nothing is written meanwhile."""

    # --- what its users do ---

    def put(self, name: str, thing: Thing) -> None:
        self.version += 1
        before = self.things.get(name)
        thing = replace(thing, version=self.version)
        self.things[name] = thing
        was_inside = before is not None and before.inside
        if thing.inside:
            self._happened("MODIFIED" if was_inside else "ADDED", name, thing)
        elif before is not None and was_inside:
            # With its old labels, and a new version.
            self._happened("DELETED", name, replace(before, version=self.version, readable=True))
        else:
            self.truth.append(dict(self.things))

    def delete(self, name: str) -> None:
        self.version += 1
        thing = self.things.pop(name)
        if thing.inside:
            self._happened("DELETED", name, replace(thing, version=self.version, readable=True))
        else:
            self.truth.append(dict(self.things))

    def compact(self) -> None:
        self.compacted = self.version
        self.history.clear()

    def back_up(self) -> None:
        self.backups.append((self.version, dict(self.things)))

    def restore(self) -> None:
        """Versions go back."""
        self.version, things = self.backups[-1]
        self.things = dict(things)
        self.history.clear()
        self.compacted = self.version
        self.is_behind = self.is_behind or self.version < self.told
        self.truth.append(dict(self.things))

    # --- what it answers ---

    def page(self, limit: int, token: str) -> bytes | None:
        """None where the token is of a version that was compacted, or of another time."""
        version, _, start = token.partition(":") if token else (str(self.version), "", "0")
        if token and int(version) != self.version:
            return None
        names = sorted(name for name, thing in self.things.items() if thing.inside)
        end = int(start) + limit if limit else len(names)
        items = [self.things[name].encoded(name) for name in names[int(start) : end]]
        metadata = {"resourceVersion": str(self.version)}
        if end < len(names):
            metadata["continue"] = f"{self.version}:{end}"
        return msgspec.json.encode({"metadata": metadata, "items": items})

    def look(self, name: str) -> bytes | None:
        thing = self.things.get(name)
        self.looked_at = max(self.looked_at, thing.version if thing else 0)
        return None if thing is None else msgspec.json.encode(thing.encoded(name))

    def watch(self, version: str) -> Watch | None:
        """None for one that is too old. With no version it begins with the list."""
        if not version:
            inside = [(name, thing) for name, thing in sorted(self.things.items()) if thing.inside]
            initial = [line("ADDED", thing.encoded(name)) for name, thing in inside]
            return Watch(self.version, [*initial, bookmark(self.version, ends_list=True)])
        if int(version) < self.compacted:
            return None
        return Watch(int(version)) if int(version) <= self.version else Watch(None)

    def was_listed(self, version: str) -> None:
        """Its user has seen all of a list."""
        self.is_behind = False
        self.told = self.looked_at = int(version)

    def read(self, watch: Watch) -> list[bytes]:
        """What there is for it now; a bookmark where there is nothing."""
        if watch.initial:
            lines, watch.initial = watch.initial, []
            return lines
        if watch.position is None or watch.position < self.compacted:
            return []
        after = watch.position
        lines = [line(each.kind, each.thing.encoded(each.name)) for each in self.history if each.version > after]
        watch.position = self.told = self.version
        watch.sent += lines
        return lines or [bookmark(self.version)]

    # --- what it knows to be true ---

    def evidence(self, name: str, uid: str, reason: DisengageReason | None, since: int) -> bool:
        """Whether that reason was ever true of the object since the truth numbered `since`."""
        for truth in self.truth[since:]:
            thing = truth.get(name)
            same = thing if thing is not None and thing.uid == uid else None
            match reason:
                case DisengageReason.DELETED:
                    found = same is None
                case DisengageReason.REPLACED:
                    found = thing is not None and thing.uid != uid
                case DisengageReason.NOT_READY:
                    found = same is not None and not same.ready
                case DisengageReason.LABELS_CHANGED:
                    found = same is not None and not same.inside
                case _:
                    found = False
            if found:
                return True
        return False

    def first_seen(self, name: str, uid: str) -> int:
        return next(index for index, truth in enumerate(self.truth) if name in truth and truth[name].uid == uid)

    def _happened(self, kind: str, name: str, thing: Thing) -> None:
        self.history.append(Happening(self.version, kind, name, thing))
        self.truth.append(dict(self.things))


def line(kind: str, content: Any) -> bytes:
    return msgspec.json.encode({"type": kind, "object": content}) + b"\n"


def bookmark(version: int, *, ends_list: bool = False) -> bytes:
    marks: dict[str, Any] = {"resourceVersion": str(version)}
    if ends_list:
        marks["annotations"] = {"k8s.io/initial-events-end": "true"}
    return line("BOOKMARK", {"metadata": marks})
