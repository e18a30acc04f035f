"""Members of a shard group that share a fault-free Lease API and one clock."""

from collections.abc import Callable

from milo_discoveryd.sharding.leases import Read, Request, WaitUntil
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.ownership import KeyOwnership
from tests.simulation.sharding.lease_api import ConflictError, LeaseApi


class Driver:
    def __init__(self, *names: str) -> None:
        self.now = 1000.0
        self.api = LeaseApi()
        self.members = {name: Member(name, f"{name}#1") for name in names}
        self.holds_drain: set[str] = set()
        """Members whose operators release no lost clusters."""
        self.pending: dict[str, set[str]] = {}
        """The clusters that a member lost and that its operator has not released, by member."""
        self.requests: list[tuple[float, str, Request]] = []

    def add(self, name: str, member: Member) -> Member:
        self.members[name] = member
        return member

    def step(self, name: str) -> bool:
        """Perform the next request of a member; return whether there was one."""
        member = self.members[name]
        action = member.next(self.now)
        if not isinstance(action, WaitUntil):
            self.requests.append((self.now, name, action))
            self.perform(member, action)
        ownership = member.ownership(self.now)
        if ownership is not None and name not in self.holds_drain:
            kept = self.pending.get(name, set())
            lost = {key for key in kept if ownership.decide(key).state is not KeyOwnership.OWNED}
            waiting = (ownership.decide(key).state for _, keys in ownership.pending for key in keys)
            member.drained(ownership.view.number, frozenset(lost), awaits_release=KeyOwnership.WAITING in waiting)
        return not isinstance(action, WaitUntil)

    def perform(self, member: Member, action: Request) -> None:
        try:
            group, version = self.api.apply(action, self.now)
        except ConflictError:
            member.conflicted(action, self.now)
            return
        if isinstance(action, Read):
            member.was_read(group, self.now, self.now)
        else:
            member.was_written(action, version, self.now, self.now)

    def run(self, seconds: float, *names: str) -> None:
        """Run the named members, by default all, for this time in steps of a quarter of a second."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.25
            for name in names or tuple(self.members):
                while self.step(name):
                    pass

    def run_until(self, holds: Callable[[], object], *names: str) -> None:
        for _ in range(1000):
            if holds():
                return
            self.run(0.25, *names)
        raise AssertionError("the condition did not become true within 250 s")

    def owned(self, name: str, keys: int = 30) -> set[str]:
        ownership = self.members[name].ownership(self.now)
        if ownership is None:
            return set()
        return {key for key in map(str, range(keys)) if ownership.decide(key).state is KeyOwnership.OWNED}
