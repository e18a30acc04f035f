"""The guard against mass removal: which objects or files without an engaged cluster may be deleted. No I/O.

The daemon guards the disengagements that it reports. But if a complete view lacks published clusters, the reason may be
a different daemon, different rights or a different filter. So objects of missing clusters are deleted only after a
second check. If much of the fleet is missing, its objects are kept until an administrator accepts the removals.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milo_discovery.model import DisengageReason, SourceState
from milo_kube import label_selector

if TYPE_CHECKING:
    from milo_discovery.model import Cluster
    from milo_discovery.options import FilterOptions
    from milo_discovery.watch import Watch

COUNT = 10
SHARE = 0.2
"""Removals are held if they exceed both `COUNT` and this share of the objects, or if they exceed half of the
objects."""
SECOND_LOOK_S = 10.0
"""Delay of the second check of a missing cluster: a member of a shard group may see a cluster later than its owner."""
CONTESTED_S = 3600.0
"""How long an object is kept if another run wrote it again after its deletion: longer than a run takes to observe the
deletion."""
RECENT_S = 300.0
"""How long removed objects count as missing: a view may come to lack a fleet in several small portions."""
ENDS = frozenset(
    {
        DisengageReason.DELETED,
        DisengageReason.NOT_READY,
        DisengageReason.REPLACED,
        DisengageReason.LABELS_CHANGED,
        DisengageReason.UNREACHABLE,
        DisengageReason.REMOVED,
    }
)
"""Reasons that concern the cluster itself, and not the subscriber or the daemon. After a disengagement for any other
reason, the cluster may still be engaged, by this daemon or another one."""


@dataclass(frozen=True, slots=True)
class Removal:
    """An object or file whose cluster is not engaged."""

    name: str
    cluster: str
    cluster_uid: str
    uid: str
    """The UID of the object."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the next run is to know of the removals of this one."""

    is_held: bool = False
    created: frozenset[str] = frozenset()
    """Objects that were created since the view lacks others."""
    removed: frozenset[str] = frozenset()
    """Removed objects that still count as missing."""


class Removals:
    """Decides which objects or files to remove after their clusters went missing from a complete view."""

    def __init__(
        self,
        *,
        accepts: bool = False,
        began_at: float = -math.inf,
        remedy: str = "give each run its own --publisher",
    ) -> None:
        """`accepts`: whether an administrator accepts removals in any number; reset once none is left. `began_at`: when
        this run began. It removes nothing for `RECENT_S`, since it does not know what a former run has removed.
        `remedy`: what to do if two runs publish different clusters as the same publisher."""
        self.accepts = accepts
        self._remedy = remedy
        self._began_at = began_at
        self.problem = ""
        """Why the removals are held; empty if they are not."""
        self.is_foreign = False
        """Whether the view lacks all published clusters: it may belong to another fleet, so nothing is written."""
        self.unknown = ""
        """Why nothing is written before it is known whether the view belongs to another fleet; empty if it is known."""
        self._missing: dict[str, tuple[Removal, float]] = {}
        """The missing objects, and since when each is missing, by its name."""
        self._is_held = False
        self._is_lacking = False
        self._created: set[str] = set()
        """The objects that were created since the view lacks others. They tell nothing of how much it lacks."""
        self._earlier: set[str] = set()
        """The objects that there were before, also those that ended since."""
        self._removed: dict[str, float] = {}
        """When each object that still counts as missing was removed, by its name."""
        self._deleted: dict[tuple[str, str], tuple[str, float]] = {}
        """The UID of each object whose deletion was confirmed, and when it was confirmed or last found to be contested,
        keyed by (object name, cluster UID)."""

    def review(
        self,
        missing: Collection[Removal],
        published: Collection[str],
        now: float,
        *,
        others: Collection[str] = (),
        are_all_known: bool = True,
    ) -> list[Removal]:
        """Return those of the `missing` removals that may be made now. `published`: the names of the objects, without
        those that are about to be removed, by an earlier review or otherwise.

        `others`: those of these that the view may lack besides: they could not be looked up, or another member of the
        shard group judges them. `are_all_known`: whether no other removal is left, for example of a source that is not
        streaming yet.
        """
        self._missing = {removal.name: (removal, self._missing_since(removal, now)) for removal in missing}
        self._deleted = {subject: last for subject, last in self._deleted.items() if now <= last[1] + CONTESTED_S}
        if not self._is_held:
            self._removed = {name: at for name, at in self._removed.items() if now <= at + RECENT_S}
        lacking = {*self._missing, *others, *self._removed}
        self.note_lacking(bool(missing) or self._is_lacking)
        mass = self._mass(lacking, published)
        if self._is_lacking:
            self._earlier |= {*published, *lacking} - self._created
            self._created &= {*published, *self._removed}
        # What is held stays so while nothing can be judged: what was removed before counts only as long as that.
        can_hold = bool(missing or (self._is_held and others))
        self._is_held = can_hold and mass is not None and not self.accepts
        self.is_foreign = False
        self.problem = ""
        if self._is_held and mass is not None:
            self._missing = {}  # clusters come back one by one: those that are left then are checked twice again
            self.is_foreign = mass <= lacking
            has_removed = not self._removed.keys() <= {removal.name for removal in missing}
            self.problem = (
                f"the daemon's view lacks all {len(mass)} clusters that have an object or file: nothing is written"
                if self.is_foreign
                else f"the daemon's view lacks {len(lacking & mass)} of {len(mass)} clusters that have an object or "
                f"file{', or had one shortly before' if has_removed else ''}: nothing is removed"
            ) + (
                "; check the daemon's address and sources, and which clusters its `rights` permit you to see, or run "
                "once with --accept-removals"
            )
            return []
        contested = {removal for removal in missing if self._is_contested(removal, now)}
        if contested:
            name, rest = min(contested, key=lambda removal: removal.name).name, len(contested) - 1
            more = f" and {rest} more" if rest else ""
            self.problem = (
                f"deleted objects were written again ({name}{more}), because another run publishes other clusters "
                f"under this publisher's name. The objects are kept; {self._remedy}"
            )
        if not missing and are_all_known:
            self.accepts = False
        due = [removal for removal, since in self._missing.values() if now >= self._due_at(since)]
        confirmed = [removal for removal in due if removal not in contested]
        self._deleted.update({_subject(removal): (removal.uid, now) for removal in confirmed})
        self._removed.update({removal.name: now for removal in confirmed if not self.accepts})
        return confirmed

    def _mass(self, lacking: set[str], published: Collection[str]) -> set[str] | None:
        """Return the objects of which the view lacks a mass: those that there were when it began to lack some, or all.
        If it lacks a mass of neither, None."""
        everything = {*published, *lacking}
        populations = (self._earlier | (everything - self._created), everything)
        return next((names for names in populations if is_mass(len(lacking & names), len(names))), None)

    def note_unknown(self, published: int, unfollowed: int) -> None:
        """Record how many of the published clusters, all of which the view lacks, are of sources that are not
        streaming; none if it does not lack all."""
        self.unknown = (
            f"the daemon's view lacks all {published} clusters that have an object or file, and the sources of "
            f"{unfollowed} are not streaming: nothing is written until they are"
            if unfollowed
            else ""
        )

    def note_lacking(self, is_lacking: bool) -> None:
        """Record whether the view lacks objects, or may lack them."""
        self._is_lacking = is_lacking or self._is_held
        if not self._is_lacking:
            self._created.clear()
            self._earlier.clear()

    def created(self, name: str) -> None:
        """Record that this run has created an object."""
        if self._is_lacking:
            self._created.add(name)

    def may_be_mass(self, lacked: Collection[str], published: Collection[str], now: float) -> bool:
        """Return whether a review would hold removals if the clusters of all these objects were missing. `published` is
        that of `review`."""
        lacking = {name for name, at in self._removed.items() if self._is_held or now <= at + RECENT_S}
        lacking.update(lacked)
        return self._mass(lacking, published) is not None and not self.accepts

    def engaged(self, name: str, cluster_uid: str) -> None:
        """Record that the cluster of an object is engaged again: this run may write an object that it has deleted."""
        self._deleted.pop((name, cluster_uid), None)
        self._removed.pop(name, None)
        if name in self._missing and self._missing[name][0].cluster_uid == cluster_uid:
            del self._missing[name]

    def removed_by_another(self, name: str, now: float) -> None:
        """Record that another client, perhaps another member of the shard group, has removed an object, as far as is
        known without evidence that its cluster has ended."""
        self._removed[name] = now

    @property
    def memory(self) -> Memory:
        return Memory(self._is_held, frozenset(self._created), frozenset(self._removed))

    def remember(self, former: Memory, now: float) -> None:
        """Continue where a former run has ended, a short time ago, or while removals were held."""
        self._is_held, self._is_lacking = former.is_held and not self.accepts, True
        self._created.update(former.created)
        self._removed.update(dict.fromkeys(former.removed, now))

    def restored(self, name: str) -> None:
        """Record that an object exists again, so that it is counted as any other."""
        self._removed.pop(name, None)

    def is_new(self, now: float) -> bool:
        """Return whether nothing is removed yet, because this run began a short time ago."""
        return now < self._began_at + RECENT_S and not self.accepts

    def _due_at(self, since: float) -> float:
        """Return when an object may be removed that is missing since a time."""
        return max(since + SECOND_LOOK_S, -math.inf if self.accepts else self._began_at + RECENT_S)

    def _missing_since(self, removal: Removal, now: float) -> float:
        former, since = self._missing.get(removal.name, (removal, now))
        return since if former == removal else now

    def _is_contested(self, removal: Removal, now: float) -> bool:
        """Return whether another run, for which the cluster is engaged, wrote the object again after its deletion."""
        uid, _ = self._deleted.get(_subject(removal), (removal.uid, now))
        if self.accepts or uid == removal.uid:
            return False
        self._deleted[_subject(removal)] = (uid, now)
        return True

    def next_look_at(self, now: float) -> float | None:
        """Return the time of the next check of missing clusters; None if none is pending."""
        if self.problem:
            return now + SECOND_LOOK_S
        due_at = (self._due_at(since) for _, since in self._missing.values())
        return min((at for at in due_at if at > now), default=None)


def _subject(removal: Removal) -> tuple[str, str]:
    return removal.name, removal.cluster_uid


def is_followed(watch: Watch, cluster: str) -> bool:
    """Return whether the cluster's source is streaming. If so, a cluster that is missing from the view is not engaged.

    A daemon that starts while Milo is unreachable sends the clusters of its state file, which can be older than the
    objects or files. For a source that the daemon no longer has, the status of the most outdated source decides.
    """
    status = watch.sources.get(cluster.partition("#")[0] if "#" in cluster else "", watch.source)
    return watch.connected and status is not None and status.state is SourceState.STREAMING


def is_burst(missing: int, published: float) -> bool:
    """Return whether more clusters are missing than may end within a short time."""
    return missing > max(COUNT, SHARE * published)


def is_mass(missing: int, published: float) -> bool:
    """Return whether so many clusters are missing that the removals are held.

    These are the daemon's two limits, but the count is of published objects: also a single one may be all of them.
    """
    return 2 * missing > published or is_burst(missing, published)


def filter_text(options: FilterOptions) -> str:
    """Return the command-line options that select the same clusters as `options`, in one form."""
    values = [("-l", _selector_text(options.get("label_selector", "")))]
    values += [("--organization", organization) for organization in sorted({*options.get("organizations", ())})]
    values += [("--source", source) for source in sorted({*options.get("sources", ())})]
    return " ".join(f"{option} {value}" for option, value in values if value)


def _selector_text(selector: str) -> str:
    try:
        requirements = label_selector.parse(selector).requirements
    except label_selector.SelectorError:
        return selector  # which the daemon refuses
    return ",".join(sorted({_requirement_text(requirement) for requirement in requirements}))


def _requirement_text(requirement: label_selector.Requirement) -> str:
    operator = {"in": "=", "notin": "!="}.get(requirement.operator)
    if operator is None or len(requirement.values) > 1:
        return str(requirement)
    return requirement.key + operator + "".join(requirement.values)


def filter_matches(options: FilterOptions, cluster: Cluster) -> bool:
    """Return whether `options` select a cluster, as far as `filter_text` names them."""
    organizations, sources = options.get("organizations", ()), options.get("sources", ())
    return (
        label_selector.parse(options.get("label_selector", "")).matches(cluster.labels.items())
        and (not organizations or cluster.organization in organizations)
        and (not sources or cluster.source in sources)
    )


def difference(recorded: tuple[str | None, str | None], current: tuple[str, str]) -> str:
    """Return how the recorded shard group and filter differ from those of this run; empty if they are the same."""
    if recorded[0] is not None and recorded[0] != current[0]:
        return f"belongs to {_of_group(recorded[0])}, but this daemon belongs to {_of_group(current[0])}"
    if recorded[1] is not None and recorded[1] != current[1]:
        return f"was written with {_with_filter(recorded[1])}, but this run has {_with_filter(current[1])}"
    return ""


def _of_group(group: str) -> str:
    return f"the shard group {group!r}" if group else "no shard group"


def _with_filter(options: str) -> str:
    return f"the filter `{options}`" if options else "no filter"
