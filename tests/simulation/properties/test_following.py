"""Whatever an API server and the way to it do: nothing is told to have ended without evidence, and in the end all is
as it is there."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milo_discoveryd.registry.events import EventType
from milo_kube.reflect.messages import Failure
from milo_kube.reflect.reflector import Watching
from tests.simulation.properties.api_server import Server, Thing, line
from tests.simulation.properties.follower import EXPIRED, UNAVAILABLE, Follower

NAMES = st.sampled_from("abcde")
MOSTLY = st.sampled_from([True, True, True, False])
STATES = st.sampled_from(
    # ready, inside the selector, readable
    [(True, True, True), (False, True, True), (True, False, True), (True, True, False), (True, True, True)]
)
Change = tuple[str, str, tuple[bool, bool, bool]]
CHANGES = st.tuples(st.sampled_from(["put", "put", "delete", "put anew"]), NAMES, STATES)
FAILURES = st.sampled_from(
    [
        UNAVAILABLE,
        EXPIRED,
        Failure("Forbidden", "403", 403),
        Failure("NotFound", "404", 404),
        Failure("TooManyRequests", "429", 429, 1.0),
        Failure("InternalError", "500", 500),
        Failure("Timeout", "504: too large resource version", 504),
        Failure("ConnectionLost", "cut"),
        Failure("MalformedResponse", "not a list"),
    ]
)
ODD_LINES = st.sampled_from(
    [
        b'{"type":"ADDED","object":{"metadata":{}}}\n',
        b'{"type":"RENAMED","object":{}}\n',
        b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}\n',
        b'{"type":"DELETED","object":{"metadata":{"name":"zz","uid":"u"}}}\n',
        b'{"type":"BOOKMARK","object":{}}\n',
        b'{"type":"ERROR","object":{"code":500,"reason":"InternalError"}}\n',
        b'{"type":"ERROR","object":{"code":410,"reason":"Expired"}}\n',
        b"<html>\n",
        b'{"type":"ADDED","obj',
    ]
)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.uids = 0
        self.checked = 0
        self.engaged: dict[str, tuple[str, int]] = {}

    @initialize(
        streaming=st.booleans(),
        page_size=st.sampled_from([1, 2, 100]),
        grace_s=st.sampled_from([0.0, 0.0, 20.0]),
        there=st.lists(CHANGES, max_size=5),
        has_begun=MOSTLY,
    )
    def begin(self, streaming: bool, page_size: int, grace_s: float, there: list[Change], has_begun: bool) -> None:
        self.things_happen(there)
        self.follower = Follower(self.server, streaming=streaming, page_size=page_size, grace_s=grace_s)
        if has_begun:
            self.follower.settle(lambda: self.watching)

    # --- what happens upstream ---

    @precondition(lambda self: not self.server.is_behind)
    @rule(changes=st.lists(CHANGES, min_size=1, max_size=4))
    def things_happen(self, changes: list[Change]) -> None:
        for change, name, (ready, inside, readable) in changes:
            before = self.server.things.get(name)
            if before is not None and change != "put":
                self.server.delete(name)
            if change != "delete":
                uid = before.uid if before is not None and change == "put" else None
                self.server.put(name, self.thing(uid, ready, inside, readable))

    @rule()
    def old_versions_are_compacted(self) -> None:
        self.server.compact()

    @rule()
    def a_backup_is_made(self) -> None:
        self.server.back_up()

    @precondition(lambda self: self.server.backups and self.server.told >= self.server.looked_at)
    @precondition(lambda self: self.has_met_bookmarks and self.goes_on_from_the_last_it_was_told)
    @rule()
    def a_backup_is_restored(self) -> None:
        self.server.restore()
        if self.follower.reflector.is_reading:
            self.follower.failed(Failure("ConnectionLost", "the server went away"))

    # --- what is asked, and what comes of it ---

    @rule(times=st.integers(1, 4), asking=MOSTLY)
    def it_goes_on(self, times: int, asking: bool) -> None:
        for _ in range(times):
            self.follower.step()
            if asking:
                self.follower.asks()

    @rule(failure=FAILURES)
    def the_next_request_fails(self, failure: Failure) -> None:
        self.follower.step(failure)

    @precondition(lambda self: self.reading)
    @rule()
    def the_watch_ends(self) -> None:
        self.follower.ended()

    @precondition(lambda self: self.reading)
    @rule()
    def the_watch_falls_silent(self) -> None:
        self.follower.waits()

    @precondition(lambda self: self.reading)
    @rule(odd=ODD_LINES)
    def something_odd_comes(self, odd: bytes) -> None:
        self.follower.hears(odd)

    @precondition(lambda self: self.watching)
    @rule(name=NAMES)
    def something_that_lives_is_reported_as_deleted(self, name: str) -> None:
        thing, watch = self.server.things.get(name), self.follower.watch
        if thing is not None and watch is not None and watch.position is not None and thing.version <= watch.position:
            self.follower.hears(line("DELETED", thing.encoded(name)))

    @precondition(lambda self: self.watching and self.follower.watch and self.follower.watch.sent)
    @rule(data=st.data())
    def what_was_said_is_said_again_in_any_order(self, data: st.DataObject) -> None:
        assert self.follower.watch is not None
        self.follower.hears(*data.draw(st.lists(st.sampled_from(self.follower.watch.sent), min_size=1, max_size=3)))

    @rule(answered=MOSTLY)
    def what_seems_gone_is_asked_about(self, answered: bool) -> None:
        self.follower.asks(answered=answered)

    @rule(seconds=st.sampled_from([0.5, 5.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.follower.now += seconds
        self.follower.ticks()

    # --- what holds ---

    @invariant()
    def nothing_ends_without_evidence(self) -> None:
        if not (hasattr(self, "follower") and self.follower.intake.synced):
            return
        for done in self.follower.done[self.checked :]:
            name, uid = done.cluster.target.name, done.cluster.target.uid
            match done.type:
                case EventType.ENGAGED:
                    assert name not in self.engaged
                    self.engaged[name] = (uid, self.server.first_seen(name, uid))
                case EventType.UPDATED:
                    assert self.engaged[name][0] == uid
                case EventType.DISENGAGED:
                    known, since = self.engaged.pop(name)
                    assert known == uid
                    assert self.server.evidence(name, uid, done.reason, since), f"{name} ended without evidence"
        self.checked = len(self.follower.done)
        assert {each.target.name for each in self.follower.registry.clusters()} == self.engaged.keys()

    def teardown(self) -> None:
        """Nothing goes wrong any more."""
        if not hasattr(self, "follower"):
            return
        if self.server.is_behind:
            self.follower.settle(lambda: not self.server.is_behind)
        for name, thing in list(self.server.things.items()):
            if not thing.readable:
                self.server.put(name, self.thing(thing.uid, thing.ready, thing.inside, True))
        if self.follower.reflector.is_reading:
            self.follower.failed(Failure("ConnectionLost", "cut"))
        self.follower.settle(self.is_as_it_is_there)
        self.nothing_ends_without_evidence()
        head, asked = self.follower.registry.log.head, len(self.follower.done)
        for _ in range(5):
            self.follower.step()
        assert (self.follower.registry.log.head, len(self.follower.done)) == (head, asked), "and then all is quiet"

    def is_as_it_is_there(self) -> bool:
        follower = self.follower
        there = {name: (thing.uid, str(thing.content)) for name, thing in self.server.things.items() if thing.engages}
        here = {
            each.target.name: (each.target.uid, dict(each.target.labels)["content"])
            for each in follower.registry.clusters()
        }
        return (
            self.watching
            and follower.watch is not None
            and follower.watch.position == self.server.version
            and not len(follower.pending_deletions)
            and follower.registry.due_at is None
            and here == there
        )

    @property
    def reading(self) -> bool:
        return self.follower.reflector.is_reading

    @property
    def watching(self) -> bool:
        return isinstance(self.follower.reflector.state, Watching)

    @property
    def has_met_bookmarks(self) -> bool:
        """Without them nobody can tell a version of the future from a quiet server."""
        return self.follower.reflector.trust.sends_bookmarks

    @property
    def goes_on_from_the_last_it_was_told(self) -> bool:
        """A repetition takes it back a little; then it can't tell a restored server from one that moved on."""
        return getattr(self.follower.reflector.state, "version", "") in ("", str(self.server.told))

    def thing(self, uid: str | None, ready: bool, inside: bool, readable: bool) -> Thing:
        self.uids += 1
        return Thing(uid or f"uid-{self.uids}", 0, ready, inside, readable, content=self.uids)


class TestFollowing(Life.TestCase):
    settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=50)
