"""Replays traces of a shard group, which contain commands and the decisions of the members as text.

A trace (testdata/*.txt) has blocks: commands, a line `----`, and below it the decisions that followed, with the seconds
since the start. `python -m tests.unit.sharding.traces` replays all of them and records the current decisions.

    start NAME [member=NAME] [weight=N] [instance=TEXT] [fleet=TEXT]    a process; it replaces one of the same name
    run SECONDS [NAME...]      these processes run, by default all; other processes send no requests during this time
    leave NAME, stop NAME      a planned end: hand the clusters over (leave), or keep them for a successor (stop)
    hold NAME, release NAME    the operators of a process keep the clusters that it lost (hold), or release them
    keep NAME                  the operators keep the clusters that the process owns now, and release all others
    change MEMBER FIELD=VALUE  another program changes the Lease of a member
    delete MEMBER              someone deletes the Lease of a member
    delete-view                someone deletes the Lease of the view
    restore SECONDS            the Leases are restored from a backup of that time

Reads, and renewals that change nothing, are not shown. There are 30 clusters.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from milo_discoveryd.sharding.leases import Delete, Evict, MemberLease, Read, Request, WriteLease, WriteView
from milo_discoveryd.sharding.member import Member
from milo_discoveryd.sharding.ownership import KeyOwnership, Ownership
from tests.simulation.sharding.lease_api import ConflictError
from tests.unit.sharding.driver import Driver

TRACES = sorted(Path(__file__).with_name("testdata").glob("*.txt"))
SEPARATOR = "----"
KEYS = tuple(map(str, range(30)))


class TracedGroup(Driver):
    """A group that records the decisions of its members."""

    def __init__(self) -> None:
        super().__init__()
        self.begun_at = self.now
        self.lines: list[str] = []
        self._holdings: dict[str, str] = {}
        self._ownerships: dict[str, Ownership | None] = {}
        """The ownerships from which the holdings were computed: equal ownerships have equal holdings."""
        self._processes: Counter[str] = Counter()

    def execute(self, command: str) -> None:
        verb, *words = command.split()
        match verb, words:
            case "start", [name, *options]:
                self._start(name, dict(option.split("=") for option in options))
            case "run", [seconds, *names]:
                self.run(float(seconds), *names)
            case "leave", [name]:
                self.members[name].leave()
            case "stop", [name]:
                self.members[name].stop()
            case "hold", [name]:
                self.holds_drain.add(name)
            case "release", [name]:
                self.holds_drain.discard(name)
                self.pending.pop(name, None)
            case "keep", [name]:
                self.pending[name] = self.owned(name)
            case "change", [member, change]:
                field, value = change.split("=")
                self.api.change(member, self.now, **{field: msgspec.convert(value, _TYPES[field], strict=False)})
            case "delete", [member]:
                self.api.delete(member, self.now)
            case "delete-view", []:
                self.api.group = msgspec.structs.replace(self.api.group, view=None, view_version="")
            case "restore", [seconds]:
                self.api.restore(self.begun_at + float(seconds))
            case _:
                raise ValueError(f"no such command: {command}")

    def _start(self, name: str, options: dict[str, str]) -> None:
        member = options.get("member", name)
        self._processes[member] += 1
        holder = f"{member}#{self._processes[member]}"
        weight = float(options.get("weight", "1"))
        self._holdings.pop(name, None)
        self._ownerships.pop(name, None)
        labels = {key: options.get(key, "") for key in ("instance", "fleet")}
        self.add(name, Member(member, holder, weight=weight, **labels))
        self._note(name, f"starts as process {holder}")

    def perform(self, member: Member, action: Request) -> None:
        [name] = (name for name, process in self.members.items() if process is member)
        decision = self._decision(action)
        try:
            group, version = self.api.apply(action, self.now)
        except ConflictError:
            member.conflicted(action, self.now)
            self._note(name, f"{decision or 'renews its Lease'}: refused, since the Lease has changed")
            return
        if isinstance(action, Read):
            member.was_read(group, self.now, self.now)
        else:
            member.was_written(action, version, self.now, self.now)
        if decision:
            self._note(name, decision)

    def step(self, name: str) -> bool:
        has_sent = super().step(name)
        ownership = self.members[name].ownership(self.now)
        if name in self._ownerships and self._ownerships[name] == ownership:
            return has_sent
        self._ownerships[name] = ownership
        holding = _holding(ownership)
        if self._holdings.get(name, "owns nothing") != holding:
            self._holdings[name] = holding
            self._note(name, holding)
        return has_sent

    def _note(self, name: str, text: str) -> None:
        self.lines.append(f"{self.now - self.begun_at:7.2f}  {name}  {text}")

    def _decision(self, action: Request) -> str:
        match action:
            case WriteLease(lease):
                return ", ".join(_lease_changes(self.api.group.members.get(lease.member), lease))
            case Evict(lease):
                return f"evicts {lease.member}"
            case Delete(lease):
                return f"deletes the Lease of {lease.member}"
            case WriteView(view):
                return f"writes view {view.number}: {' '.join(sorted(view.members)) or 'no members'}"
            case _:
                return ""


def _holding(ownership: Ownership | None) -> str:
    if ownership is None:
        return "owns nothing"
    decisions = [ownership.decide(key) for key in KEYS]
    owned = sum(decision.state is KeyOwnership.OWNED for decision in decisions)
    awaited = Counter(str(decision.member) for decision in decisions if decision.state is KeyOwnership.WAITING)
    unconfirmed = awaited.pop(ownership.member, 0)
    waits = [f"{number} wait for {member} to release them" for member, number in sorted(awaited.items())]
    if unconfirmed:
        waits.append(f"{unconfirmed} wait until every other member has renewed its Lease")
    return "; ".join([f"owns {owned or 'nothing'}", *waits])


_TYPES = {field.name: field.type for field in msgspec.structs.fields(MemberLease)}


def _lease_changes(before: MemberLease | None, lease: MemberLease) -> Iterator[str]:
    if before is None or not before.is_held:
        yield f"joins, in term {lease.term}"
    elif not lease.is_held:
        yield "releases its Lease"
        return
    elif before.holder != lease.holder:
        same = "the same" if before.term == lease.term else "another"
        yield f"takes the Lease over from {before.holder}, in {same} term"
    elif before.term != lease.term:
        yield f"joins again, in term {lease.term}"
    before = before or MemberLease(member=lease.member)
    if lease.acknowledged > before.acknowledged:
        yield f"acknowledges view {lease.acknowledged}"
    if lease.pending != before.pending:
        yield f"names {len(lease.pending) or 'no'} clusters that are not released"
    if lease.is_leaving and not before.is_leaving:
        yield "leaves"
    if lease.is_stopped and not before.is_stopped:
        yield "has stopped, and keeps its term"


def play(trace: str) -> str:
    """Return the trace with the current decisions of the members."""
    group, played = TracedGroup(), []
    is_output = False
    for line in trace.splitlines():
        if line == SEPARATOR:
            is_output = True
            played += [line, *group.lines]
            group.lines = []
        elif not line:
            is_output = False
            played.append(line)
        elif not is_output:
            played.append(line)
            if not line.startswith("#"):
                group.execute(line)
    return "\n".join(played) + "\n"


if __name__ == "__main__":
    for path in TRACES:
        path.write_text(play(path.read_text()))
