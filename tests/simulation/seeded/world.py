"""Random changes of clusters upstream. Each is recorded, and the events of subscribers are compared with the record."""

from random import Random

from tests.end_to_end.process.upstream import State, Upstream
from tests.simulation.properties.api_server import ApiObject, Server

NAMES = "abcdef"


class World:
    def __init__(self, server: Server, random: Random) -> None:
        self.server = server
        self.upstream = Upstream("in=yes")
        self.not_ready_at: dict[str, int] = {}
        """By UID, the version of the latest write before or after which the object was not ready."""
        self._random = random
        self._made = 0

    def change(self, *, may_garble: bool = False) -> None:
        """Make one random change."""
        name = self._random.choice(NAMES)
        before = self.server.objects.get(name)
        if before is None:
            self.put(name, self._new())
            return
        match self._random.choices(
            ("update", "turn", "move", "leave", "delete", "replace", "garble"), (4, 4, 3, 2, 3, 2, int(may_garble))
        )[0]:
            case "update":
                self.put(name, self._like(before))
            case "turn":
                self.put(name, self._like(before, ready=not before.ready))
            case "move":
                self.put(name, self._like(before, team="blue" if before.team == "red" else "red"))
            case "leave":
                self.put(name, self._like(before, inside=not before.inside))
            case "garble":
                self.put(name, self._like(before, readable=False))
            case "delete":
                self.delete(name)
            case _:
                self.delete(name)
                self.put(name, self._new())

    def put(self, name: str, obj: ApiObject) -> None:
        before = self.server.objects.get(name)
        self.server.put(name, obj)
        self._note_not_ready(before, obj)
        if obj.readable:
            self.upstream.note(name, state(obj))
        elif self._is_another(name, obj.uid):
            self.upstream.note(name, State(obj.uid, False, ()))

    def delete(self, name: str) -> None:
        before = self.server.objects[name]
        self.server.delete(name)
        self._note_not_ready(before)
        self.upstream.note(name, None)

    def repair_objects(self) -> None:
        """Make every object decodable again."""
        for name, obj in list(self.server.objects.items()):
            if not obj.readable:
                self.put(name, self._like(obj, readable=True))

    def restore(self) -> None:
        """Restore the last backup, with its versions."""
        self.server.restore()
        self.upstream.went_back = True
        for name in NAMES:
            obj = self.server.objects.get(name)
            if obj is None and self.upstream.has(name):
                self.upstream.note(name, None)
            elif obj is not None and obj.readable:
                self.upstream.note(name, state(obj))

    def _note_not_ready(self, *objects: ApiObject | None) -> None:
        """Record the version of objects that are not ready: an event has the object as it is, or as it was before it
        was deleted or left the selector.
        """
        for obj in objects:
            if obj is not None and not obj.ready:
                self.not_ready_at[obj.uid] = self.server.version

    def _is_another(self, name: str, uid: str) -> bool:
        return not self.upstream.has(name) or self.upstream[name].uid != uid

    def _new(self) -> ApiObject:
        self._made += 1
        is_ready, is_inside = self._random.random() < 0.8, self._random.random() < 0.9
        team = self._random.choice(("red", "blue"))
        return ApiObject(f"uid-{self._made}", 0, is_ready, is_inside, True, self._content(), team)

    def _like(
        self,
        obj: ApiObject,
        *,
        ready: bool | None = None,
        inside: bool | None = None,
        readable: bool = True,
        team: str | None = None,
    ) -> ApiObject:
        return ApiObject(
            obj.uid,
            0,
            obj.ready if ready is None else ready,
            obj.inside if inside is None else inside,
            readable,
            self._content(),
            team or obj.team,
        )

    def _content(self) -> int:
        self._made += 1
        return self._made


def state(obj: ApiObject) -> State:
    labels = {"content": str(obj.content), "in": "yes" if obj.inside else "no", "team": obj.team}
    return State(obj.uid, obj.ready, tuple(sorted(labels.items())))
