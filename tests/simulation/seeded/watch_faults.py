"""Faults of open watches: cut connections, wrong, repeated and missing events."""

from collections.abc import Callable
from random import Random

from milo_kube.http.errors import TransportError
from tests.simulation.properties.api_server import line
from tests.simulation.seeded.api import Api, Open
from tests.simulation.seeded.world import World


class WatchFaultInjector:
    def __init__(self, api: Api, world: World, random: Random) -> None:
        self._api = api
        self._world = world
        self._random = random

    def strike(self) -> None:
        """Inject a fault into an open watch."""
        opened = next(iter(self._api.open), None)
        if opened is None:
            return
        row, name, act = self._random.choice(WATCH_FAULTS)
        self._api.inject(row, name)
        act(self, opened)

    def cut_in_a_line(self, opened: Open) -> None:
        opened.say(self._half_a_line(), TransportError("closed", "reset"))

    def end_in_a_line(self, opened: Open) -> None:
        opened.say(self._half_a_line(), None)

    def _half_a_line(self) -> bytes:
        whole = line("MODIFIED", {"metadata": {"name": "a", "uid": "uid-1", "resourceVersion": "9"}})
        return whole[: self._random.randrange(1, len(whole) - 1)]

    def say_again(self, opened: Open) -> None:
        self._api.needs_relist = True
        if opened.sent:
            opened.say(*self._random.choices(opened.sent, k=self._random.randint(1, 3)))

    def say_backwards(self, opened: Open) -> None:
        self._api.needs_relist = True
        opened.is_backwards = True

    def report_a_deletion(self, opened: Open) -> None:
        position = opened.watch.position if opened.watch is not None else None
        known = [
            (n, t) for n, t in self._world.server.objects.items() if position is not None and t.version <= position
        ]
        if known:
            name, obj = self._random.choice(known)
            opened.say(line("DELETED", obj.encoded(name)))

    def lose_events(self, opened: Open) -> None:
        if opened.watch is not None and opened.watch.position is not None and not opened.watch.initial:
            self._world.change()
            self._api.needs_relist = True
            opened.watch.position = max(opened.watch.position, self._world.server.version)

    def be_mute(self, opened: Open) -> None:
        opened.mute = True

    def send_no_bookmarks(self, opened: Open) -> None:
        opened.without_bookmarks = True


def _saying(*pieces: bytes | TransportError | None) -> Callable[[WatchFaultInjector, Open], None]:
    return lambda _, opened: opened.say(*pieces)


def _refusing(code: int, reason: str) -> Callable[[WatchFaultInjector, Open], None]:
    return _saying(line("ERROR", {"kind": "Status", "code": code, "reason": reason, "message": reason}), None)


WatchFault = tuple[str, str, Callable[[WatchFaultInjector, Open], None]]
WATCH_FAULTS: tuple[WatchFault, ...] = (
    ("F1", "the watch ends", _saying(None)),
    ("F2", "connection cut within a line", WatchFaultInjector.cut_in_a_line),
    ("F2", "connection cut between lines", _saying(TransportError("closed", "reset"))),
    ("F3", "ended within a line", WatchFaultInjector.end_in_a_line),
    ("F4", "mute", WatchFaultInjector.be_mute),
    ("F4", "no bookmarks", WatchFaultInjector.send_no_bookmarks),
    ("F12", "expired, in the stream", _refusing(410, "Expired")),
    ("F13", "an error in the stream", _refusing(500, "InternalError")),
    ("F13", "an empty error", _saying(line("ERROR", {}))),
    ("F13", "a future version, in the stream", _refusing(504, "Timeout")),
    ("F24", "repeated events", WatchFaultInjector.say_again),
    ("F24", "events in reverse order", WatchFaultInjector.say_backwards),
    ("F25", "an event is lost", WatchFaultInjector.lose_events),
    ("F25", "a false deletion", WatchFaultInjector.report_a_deletion),
    ("F26", "an event of an unknown type", _saying(b'{"type":"RENAMED","object":{}}\n')),
    ("F26", "an object without a name", _saying(b'{"type":"ADDED","object":{"metadata":{}}}\n')),
    ("F26", "a deletion of an unknown object", _saying(b'{"type":"DELETED","object":{"metadata":{"name":"zz"}}}\n')),
    ("F26", "a bookmark without a version", _saying(b'{"type":"BOOKMARK","object":{}}\n')),
    ("F28", "junk in the stream", _saying(b"<html>\n")),
)
