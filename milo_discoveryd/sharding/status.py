"""The status of a shard group for users, as one member sees it. Pure."""

import msgspec

from milo_discoveryd.sharding.member import Member

_NAMES_IN_PROTO = {
    "is_in_view": "inView",
    "is_alive": "alive",
    "is_leaving": "leaving",
    "acknowledged": "acknowledgedView",
    "is_settled": "settled",
}


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True, rename=_NAMES_IN_PROTO):
    name: str
    weight: float
    is_in_view: bool
    is_alive: bool
    is_leaving: bool
    acknowledged: int


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True, rename=_NAMES_IN_PROTO):
    group: str
    member: str
    view: int
    is_settled: bool
    members: tuple[MemberStatus, ...]
    problem: str = ""

    @property
    def weights(self) -> dict[str, float]:
        """The members of the view, with their weights."""
        return {member.name: member.weight for member in self.members if member.is_in_view}


def group_status(group: str, member: Member, problem: str) -> GroupStatus:
    leases = member.state.group.leases.members
    view = member.state.group.latest_view
    in_view = {} if view is None else view.members
    return GroupStatus(
        group=group,
        member=member.name,
        view=0 if view is None else view.number,
        is_settled=member.is_settled,
        members=tuple(
            MemberStatus(
                name=name,
                weight=in_view[name].weight if name in in_view else leases[name].weight,
                is_in_view=name in in_view,
                is_alive=name in leases and leases[name].is_held and not leases[name].is_stopped,
                is_leaving=name in leases and leases[name].is_leaving,
                acknowledged=leases[name].acknowledged if name in leases else 0,
            )
            for name in sorted({*in_view, *(name for name, lease in leases.items() if lease.is_held)})
        ),
        problem=problem,
    )
