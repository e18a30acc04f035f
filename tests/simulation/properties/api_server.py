"""A model of an API server without time or I/O: objects, versions, watches and their faults.

It records every past state, so that a test can check each reported disengagement against it.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from milo_discoveryd.model.cluster import DisengageReason, Target
from milo_discoveryd.model.observation import Observation, Outside
from milo_discoveryd.sources.kind import SourceOptions
from milo_discoveryd.sources.project import ProjectObjects
from milo_discoveryd.sources.reading import KubeObject

_MODE = ProjectObjects(SourceOptions(project_server="https://api.example.com"))


def observe(obj: KubeObject) -> Observation:
    """Observe an object as the daemon does: by its mode, if the selector matches."""
    metadata = obj.metadata
    if (metadata.labels or {}).get("in") == "yes":
        return _MODE.observe(obj)
    return Outside(metadata.name, metadata.uid, metadata.resourceVersion, "not selected")


def place_of(stored: Target) -> tuple[str, ...]:
    return _MODE.restored_place(stored)


@dataclass(frozen=True)
class ApiObject:
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
class RecordedChange:
    version: int
    kind: str
    name: str
    obj: ApiObject


@dataclass
class Watch:
    """A watch from `position`; None stands for a future version, which never receives an event."""

    position: int | None
    initial: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)


class Server:
    def __init__(self) -> None:
        self.version = 1
        self.objects: dict[str, ApiObject] = {}
        self.history: list[RecordedChange] = []
        self.compacted = 0
        self.states: list[dict[str, ApiObject]] = [{}]
        """All objects, after each change."""
        self.past: list[tuple[int, dict[str, ApiObject]]] = []
        """Earlier versions since the last restore, and the objects at each: a lagging replica may serve any of them."""
        self.backups: list[tuple[int, dict[str, ApiObject]]] = []
        self.sent_version = 0
        """The latest version that a list or a watch sent."""
        self.read_version = 0
        """The latest version of an object that was read by name."""
        self.is_behind = False
        """Whether the server was restored to a version before one that it had sent, and no list was read since. A
        client can detect this only until the server has caught up, so this model writes nothing until a list was read.
        """

    # --- writes and faults ---

    def put(self, name: str, obj: ApiObject) -> None:
        self._advance()
        before = self.objects.get(name)
        obj = replace(obj, version=self.version)
        self.objects[name] = obj
        was_inside = before is not None and before.inside
        if obj.inside:
            self._record("MODIFIED" if was_inside else "ADDED", name, obj)
        elif before is not None and was_inside:
            # a watch reports the old labels with the new version
            self._record("DELETED", name, replace(before, version=self.version, readable=True))
        else:
            self.states.append(dict(self.objects))

    def delete(self, name: str) -> None:
        self._advance()
        obj = self.objects.pop(name)
        if obj.inside:
            self._record("DELETED", name, replace(obj, version=self.version, readable=True))
        else:
            self.states.append(dict(self.objects))

    def compact(self) -> None:
        self.compacted = self.version
        self.history.clear()

    def back_up(self) -> None:
        self.backups.append((self.version, dict(self.objects)))

    def restore(self) -> None:
        """Restore the last backup: versions go back."""
        self.version, objects = self.backups[-1]
        self.objects = dict(objects)
        self.history.clear()
        self.past.clear()
        self.compacted = self.version
        self.is_behind = self.is_behind or self.version < self.sent_version
        self.states.append(dict(self.objects))

    # --- reads ---

    def page(self, limit: int, token: str) -> bytes | None:
        """Return a page of the list, or None if the token's version was compacted or restored away."""
        version, _, start = token.partition(":") if token else (str(self.version), "", "0")
        if token and int(version) != self.version:
            return None
        names = sorted(name for name, obj in self.objects.items() if obj.inside)
        end = int(start) + limit if limit else len(names)
        items = [self.objects[name].encoded(name) for name in names[int(start) : end]]
        metadata = {"resourceVersion": str(self.version)}
        if end < len(names):
            metadata["continue"] = f"{self.version}:{end}"
        return msgspec.json.encode({"metadata": metadata, "items": items})

    def read_object(self, name: str) -> bytes | None:
        obj = self.objects.get(name)
        self.read_version = max(self.read_version, obj.version if obj else 0)
        return None if obj is None else msgspec.json.encode(obj.encoded(name))

    def watch(self, version: str) -> Watch | None:
        """Return a watch, or None if the version is too old; without a version it begins with a list."""
        if not version:
            return Watch(self.version, initial_lines(self.version, self.objects))
        if int(version) < self.compacted:
            return None
        return Watch(int(version)) if int(version) <= self.version else Watch(None)

    def was_listed(self, version: str) -> None:
        """Record that the client read a complete list."""
        self.is_behind = False
        self.sent_version = self.read_version = int(version)

    def read(self, watch: Watch) -> list[bytes]:
        """Return the pending events of a watch, or a bookmark if there are none."""
        if watch.initial:
            lines, watch.initial = watch.initial, []
            return lines
        if watch.position is None or watch.position < self.compacted:
            return []
        after = watch.position
        lines = [line(write.kind, write.obj.encoded(write.name)) for write in self.history if write.version > after]
        watch.position = self.sent_version = self.version
        watch.sent += lines
        return lines or [bookmark(self.version)]

    # --- recorded states ---

    def evidence(self, name: str, uid: str, reason: DisengageReason | None, since: int) -> bool:
        """Return whether the reason was true of the object at any time since state number `since`."""
        for states in self.states[since:]:
            obj = states.get(name)
            same = obj if obj is not None and obj.uid == uid else None
            match reason:
                case DisengageReason.DELETED:
                    found = same is None
                case DisengageReason.REPLACED:
                    found = obj is not None and obj.uid != uid
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
        return next(index for index, states in enumerate(self.states) if name in states and states[name].uid == uid)

    def _advance(self) -> None:
        self.past.append((self.version, dict(self.objects)))
        self.version += 1

    def _record(self, kind: str, name: str, obj: ApiObject) -> None:
        self.history.append(RecordedChange(self.version, kind, name, obj))
        self.states.append(dict(self.objects))


def initial_lines(version: int, objects: dict[str, ApiObject]) -> list[bytes]:
    """Return the lines of a streaming list."""
    inside = [(name, obj) for name, obj in sorted(objects.items()) if obj.inside]
    return [*(line("ADDED", obj.encoded(name)) for name, obj in inside), bookmark(version, ends_list=True)]


def line(kind: str, content: Any) -> bytes:
    return msgspec.json.encode({"type": kind, "object": content}) + b"\n"


def bookmark(version: int, *, ends_list: bool = False) -> bytes:
    marks: dict[str, Any] = {"resourceVersion": str(version)}
    if ends_list:
        marks["annotations"] = {"k8s.io/initial-events-end": "true"}
    return line("BOOKMARK", {"metadata": marks})
