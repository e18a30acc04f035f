"""The Lease API of a simulation: compare-and-swap on resource versions, with backups."""

import msgspec

from milo_discoveryd.sharding.leases import (
    Delete,
    Evict,
    GroupState,
    MemberLease,
    Read,
    Request,
    View,
    WriteLease,
    WriteView,
)

EMPTY = GroupState(members={})


class ConflictError(Exception):
    pass


class LeaseApi:
    def __init__(self, group: GroupState = EMPTY, revision: int = 100) -> None:
        self.group = group
        self.revision = revision
        self.views: list[View] = []
        self.replaced: list[str] = []
        """Breaches: views that were overwritten by a view that does not follow them."""
        self.has_preconditions = True
        self._past: list[tuple[float, GroupState, int]] = []

    def apply(self, request: Request, at: float) -> tuple[GroupState, str]:
        """Apply a request; return the group, and the version of what was written.

        Raises ConflictError.
        """
        match request:
            case Read():
                return self.group, ""
            case WriteLease(lease) | Evict(lease):
                self._require(self._version_of(lease.member), lease.version)
                written = msgspec.structs.replace(lease, version=self._next(lease.version))
                self._replace(at, members={**self.group.members, lease.member: written})
                return self.group, written.version
            case Delete(lease):
                self._require(self._version_of(lease.member), lease.version)
                self.delete(lease.member, at)
                return self.group, ""
            case WriteView(view, version):
                if self.has_preconditions:
                    self._require(self.group.view_version, version)
                former = self.group.view
                if former is not None and (view.number, view.previous) != (former.number + 1, former.members):
                    self.replaced.append(f"view {view.id} does not follow {former.id}, which it replaces")
                self.views.append(view)
                self._replace(at, view=view, view_version=self._next(version))
                return self.group, self.group.view_version

    def delete(self, member: str, at: float) -> None:
        members = {name: lease for name, lease in self.group.members.items() if name != member}
        self._replace(at, members=members)

    def change(self, member: str, at: float, **changes: object) -> None:
        """Change a Lease as another program does."""
        if lease := self.group.members.get(member):
            changed = msgspec.structs.replace(lease, version=self._next(lease.version), **changes)
            self._replace(at, members={**self.group.members, member: changed})

    def as_of(self, at: float) -> GroupState:
        return self._state_at(at)[1]

    def restore(self, as_of: float) -> None:
        _, self.group, self.revision = self._state_at(as_of)

    def _state_at(self, at: float) -> tuple[float, GroupState, int]:
        return next(state for state in (*reversed(self._past), (at, EMPTY, 100)) if state[0] <= at)

    def _replace(self, at: float, **changes: object) -> None:
        self.group = msgspec.structs.replace(self.group, **changes)
        self._past.append((at, self.group, self.revision))

    def _version_of(self, member: str) -> str:
        lease: MemberLease | None = self.group.members.get(member)
        return "" if lease is None else lease.version

    def _require(self, found: str, expected: str) -> None:
        if found != expected:
            raise ConflictError

    def _next(self, former: str) -> str:
        self.revision += 1
        return str(self.revision)
