"""A source under arbitrary faults: nothing is disengaged without evidence, and the fleet converges to the server's
state."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milo_discoveryd.log.events import EventType
from milo_kube.reflect.messages import Failure
from milo_kube.reflect.states import Watching
from tests.simulation.properties.api_server import ApiObject, Server, line
from tests.simulation.properties.follower import EXPIRED, UNAVAILABLE, Follower

NAMES = st.sampled_from("abcde")
MOSTLY = st.sampled_from([True, True, True, False])
STATES = st.sampled_from(
    # ready, inside the selector, readable
    [(True, True, True), (False, True, True), (True, False, True), (True, True, False), (True, True, True)]
)
Change = tuple[str, str, tuple[bool, bool, bool]]
CHANGES = st.tuples(st.sampled_from(["put", "put", "delete", "recreate"]), NAMES, STATES)
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


class FollowingMachine(RuleBasedStateMachine):
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
        self.change_objects(there)
        self.follower = Follower(self.server, streaming=streaming, page_size=page_size, grace_s=grace_s)
        if has_begun:
            self.follower.settle(lambda: self.watching)

    # --- the API server ---

    @precondition(lambda self: not self.server.is_behind)
    @rule(changes=st.lists(CHANGES, min_size=1, max_size=4))
    def change_objects(self, changes: list[Change]) -> None:
        for change, name, (ready, inside, readable) in changes:
            before = self.server.objects.get(name)
            if before is not None and change != "put":
                self.server.delete(name)
            if change != "delete":
                uid = before.uid if before is not None and change == "put" else None
                self.server.put(name, self.obj(uid, ready, inside, readable))

    @rule()
    def compact_versions(self) -> None:
        self.server.compact()

    @rule()
    def back_up(self) -> None:
        self.server.back_up()

    @precondition(lambda self: self.server.backups and self.server.sent_version >= self.server.read_version)
    @precondition(lambda self: self.has_seen_bookmarks and self.resumes_from_latest_version)
    @rule()
    def restore_backup(self) -> None:
        self.server.restore()
        if self.follower.reflector.is_reading:
            self.follower.failed(Failure("ConnectionLost", "the server went away"))

    # --- requests and faults ---

    @rule(times=st.integers(1, 4), asking=MOSTLY)
    def make_progress(self, times: int, asking: bool) -> None:
        for _ in range(times):
            self.follower.step()
            if asking:
                self.follower.confirm_deletions()

    @rule(failure=FAILURES)
    def fail_next_request(self, failure: Failure) -> None:
        self.follower.step(failure)

    @precondition(lambda self: self.reading)
    @rule()
    def end_watch(self) -> None:
        self.follower.ended()

    @precondition(lambda self: self.reading)
    @rule()
    def time_out_watch(self) -> None:
        self.follower.time_out()

    @precondition(lambda self: self.reading)
    @rule(odd_line=ODD_LINES)
    def send_odd_line(self, odd_line: bytes) -> None:
        self.follower.receive(odd_line)

    @precondition(lambda self: self.watching)
    @rule(name=NAMES)
    def report_false_deletion(self, name: str) -> None:
        obj, watch = self.server.objects.get(name), self.follower.watch
        if obj is not None and watch is not None and watch.position is not None and obj.version <= watch.position:
            self.follower.receive(line("DELETED", obj.encoded(name)))

    @precondition(lambda self: self.watching and self.follower.watch and self.follower.watch.sent)
    @rule(data=st.data())
    def repeat_sent_events(self, data: st.DataObject) -> None:
        assert self.follower.watch is not None
        self.follower.receive(*data.draw(st.lists(st.sampled_from(self.follower.watch.sent), min_size=1, max_size=3)))

    @rule(answered=MOSTLY)
    def confirm_pending_deletions(self, answered: bool) -> None:
        self.follower.confirm_deletions(answered=answered)

    @rule(seconds=st.sampled_from([0.5, 5.0, 40.0]))
    def advance_time(self, seconds: float) -> None:
        self.follower.now += seconds
        self.follower.run_timers()

    # --- invariants ---

    @invariant()
    def check_evidence_of_ends(self) -> None:
        if not (hasattr(self, "follower") and self.follower.listed.collection.is_synced):
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
                    assert self.server.evidence(name, uid, done.reason, since), f"no evidence to disengage {name}"
        self.checked = len(self.follower.done)
        assert {cluster.target.name for cluster in self.follower.engagements.clusters()} == self.engaged.keys()

    def teardown(self) -> None:
        """Remove all faults, and check that the fleet converges."""
        if not hasattr(self, "follower"):
            return
        if self.server.is_behind:
            self.follower.settle(lambda: not self.server.is_behind)
        for name, obj in list(self.server.objects.items()):
            if not obj.readable:
                self.server.put(name, self.obj(obj.uid, obj.ready, obj.inside, True))
        if self.follower.reflector.is_reading:
            self.follower.failed(Failure("ConnectionLost", "cut"))
        self.follower.settle(self.has_converged)
        self.check_evidence_of_ends()
        head, asked = self.follower.engagements.log.head, len(self.follower.done)
        for _ in range(5):
            self.follower.step()
        assert (self.follower.engagements.log.head, len(self.follower.done)) == (head, asked), (
            "a settled follower reports nothing"
        )

    def has_converged(self) -> bool:
        follower = self.follower
        there = {name: (obj.uid, str(obj.content)) for name, obj in self.server.objects.items() if obj.engages}
        here = {
            cluster.target.name: (cluster.target.uid, dict(cluster.target.labels)["content"])
            for cluster in follower.engagements.clusters()
        }
        return (
            self.watching
            and follower.watch is not None
            and follower.watch.position == self.server.version
            and not len(follower.pending_deletions)
            and follower.engagements.not_ready.due_at is None
            and here == there
        )

    @property
    def reading(self) -> bool:
        return self.follower.reflector.is_reading

    @property
    def watching(self) -> bool:
        return isinstance(self.follower.reflector.state, Watching)

    @property
    def has_seen_bookmarks(self) -> bool:
        """Whether bookmarks were received; without them a server with an older version looks like an idle server."""
        return self.follower.reflector.trust.sends_bookmarks

    @property
    def resumes_from_latest_version(self) -> bool:
        """Whether the watch resumes from the latest version.

        A repeated event moves the version back a little; then a restored server cannot be distinguished from one that
        has advanced.
        """
        return getattr(self.follower.reflector.state, "version", "") in ("", str(self.server.sent_version))

    def obj(self, uid: str | None, ready: bool, inside: bool, readable: bool) -> ApiObject:
        self.uids += 1
        return ApiObject(uid or f"uid-{self.uids}", 0, ready, inside, readable, content=self.uids)


class TestFollowing(FollowingMachine.TestCase):
    settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=50)
