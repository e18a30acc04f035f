"""Random changes of clusters upstream. Each is recorded, and the events of subscribers are compared with the record."""

from random import Random

from tests.end_to_end.process.upstream import State, Upstream
from tests.simulation.properties.api_server import Server, Thing

NAMES = "abcdef"


class World:
    def __init__(self, server: Server, random: Random) -> None:
        self.server = server
        self.upstream = Upstream("in=yes")
        self._random = random
        self._made = 0

    def happens(self, *, may_garble: bool = False) -> None:
        """One thing."""
        name = self._random.choice(NAMES)
        before = self.server.things.get(name)
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

    def put(self, name: str, thing: Thing) -> None:
        self.server.put(name, thing)
        if thing.readable:
            self.upstream.note(name, state(thing))
        elif self._is_another(name, thing.uid):
            self.upstream.note(name, State(thing.uid, False, ()))

    def delete(self, name: str) -> None:
        self.server.delete(name)
        self.upstream.note(name, None)

    def mend(self) -> None:
        """Nothing is garbled any more."""
        for name, thing in list(self.server.things.items()):
            if not thing.readable:
                self.put(name, self._like(thing, readable=True))

    def restore(self) -> None:
        """Everything is as it was at the last backup, versions too."""
        self.server.restore()
        self.upstream.went_back = True
        for name in NAMES:
            thing = self.server.things.get(name)
            if thing is None and self.upstream.has(name):
                self.upstream.note(name, None)
            elif thing is not None and thing.readable:
                self.upstream.note(name, state(thing))

    def _is_another(self, name: str, uid: str) -> bool:
        return not self.upstream.has(name) or self.upstream[name].uid != uid

    def _new(self) -> Thing:
        self._made += 1
        is_ready, is_inside = self._random.random() < 0.8, self._random.random() < 0.9
        team = self._random.choice(("red", "blue"))
        return Thing(f"uid-{self._made}", 0, is_ready, is_inside, True, self._content(), team)

    def _like(
        self,
        thing: Thing,
        *,
        ready: bool | None = None,
        inside: bool | None = None,
        readable: bool = True,
        team: str | None = None,
    ) -> Thing:
        return Thing(
            thing.uid,
            0,
            thing.ready if ready is None else ready,
            thing.inside if inside is None else inside,
            readable,
            self._content(),
            team or thing.team,
        )

    def _content(self) -> int:
        self._made += 1
        return self._made


def state(thing: Thing) -> State:
    labels = {"content": str(thing.content), "in": "yes" if thing.inside else "no", "team": thing.team}
    return State(thing.uid, thing.ready, tuple(sorted(labels.items())))
