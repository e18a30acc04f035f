"""The change of a view: when the next one may be written, and which members it contains. Pure."""

from collections.abc import Mapping

from milo_discoveryd.sharding.leases import View, ViewMember, WriteView
from milo_discoveryd.sharding.observed_group import ObservedGroup, number_of
from milo_discoveryd.sharding.timing import Timing


def next_view(group: ObservedGroup, holder: str, now: float, timing: Timing) -> WriteView | None:
    """Return the next view; None if none is due. Every member that follows the present one has acknowledged it then."""
    view, members = group.leases.view, _next_members(group)
    former: Mapping[str, ViewMember] = {} if view is None else view.members
    if not members and group.candidates.members:
        return None  # present owners continue until a candidate may engage clusters
    if not group.are_stable(now, timing):
        # Newcomers wait, unless all others leave, and what leaving members hand over does not.
        staying = {name: member for name, member in members.items() if former.get(name) == member}
        if not former or not _only_loses_leaving_members(group, former, staying):
            return None
        members = staying or members
    if not group.is_authoritative or (view is None and group.latest_view is not None):
        return None
    if view is not None and (
        dict(former) == members or any(group.unsettled(view, {**view.previous, **former}, now, timing))
    ):
        return None
    number = number_of(view) + 1
    view = View(number=number, id=f"{holder}.{number}", members=members, previous=former)
    return WriteView(view, group.leases.view_version)


def _only_loses_leaving_members(
    group: ObservedGroup, former: Mapping[str, ViewMember], members: Mapping[str, ViewMember]
) -> bool:
    """Return whether the only change in the next view is that members that hand over their clusters are removed."""
    leaving = {name for name, lease in group.leases.members.items() if lease.is_held and lease.is_leaving}
    return {name: member for name, member in former.items() if name not in leaving} == members


def _next_members(group: ObservedGroup) -> dict[str, ViewMember]:
    """Return the candidates, except newcomers, also in another term, that may not engage clusters yet. Without an owner
    that could wait for these, as in the first view, it returns all candidates."""
    view, candidates, leases = group.leases.view, group.candidates.members, group.leases.members
    terms = {} if view is None else {name: member.term for name, member in view.members.items()}
    if not any(lease.is_held and lease.term == terms.get(name) for name, lease in leases.items()):
        return dict(candidates)
    return {
        name: member
        for name, member in candidates.items()
        if member.term == terms.get(name) or leases[name].acknowledged > 0
    }
