"""The guard against mass removal: a list that lacks most of the fleet is not accepted at once.

An API server that was restored from a backup, that started on an empty store, or that is another one behind the same
address answers lists and single reads consistently but incorrectly. Accepting them would make every operator stop work
on every cluster. So such a list is held: it disengages nothing until a later list lacks the same clusters. If the
server's resource versions went back, the clusters are held until an administrator accepts what the server shows.
Clusters that the restored server has shown are not affected: later lists may lack them.

Deletions that a watch reports are held in the same way, if they are many within a short time, until a list lacks the
clusters too: when the definition of a resource is deleted, the API server deletes all objects one by one.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from milo_kube.reflect.versions import is_older


class RemovalLimits(msgspec.Struct, frozen=True, kw_only=True):
    count: int = 10
    """The number of engaged clusters that a list may lack."""
    share: float = 0.2
    """The share of engaged clusters that a list may lack, if that is more than `count`. More than half of the engaged
    clusters, or all of two or more, are always too many."""
    verify_after_s: float = 30.0
    per_second: float = 50.0
    """The rate at which verified removals are confirmed one by one."""

    def is_mass(self, missing: int, engaged: int) -> bool:
        """Return whether the number of missing clusters is a mass removal."""
        if engaged < 2:
            return False
        return 2 * missing > engaged or missing > max(self.count, self.share * engaged)


ACCEPT = "an administrator accepts what the server shows (SIGUSR2)"
_LISTS_WHILE_BEHIND = 6
"""Number of lists that are requested before a server whose versions went back is considered restored."""


class HeldRemovals(msgspec.Struct, frozen=True):
    """The message for operators when removals are held, so that the clusters stay engaged."""

    since: float
    message: str


class ConfirmEach(msgspec.Struct, frozen=True):
    """Confirm each missing cluster by a read of the object, as usual."""


class ConfirmAtRate(msgspec.Struct, frozen=True):
    """Confirm each missing cluster, at a limited rate."""

    per_second: float


RemovalDecision = ConfirmEach | HeldRemovals | ConfirmAtRate


class JudgedRemovals(msgspec.Struct, frozen=True):
    """A group of objects that a list lacks, and what to do about them."""

    objects: Sequence[tuple[str, str]]
    """Names and UIDs."""
    decision: RemovalDecision


class ListJudgement(msgspec.Struct, frozen=True):
    removals: Sequence[JudgedRemovals]
    """Each object is in one group."""
    is_foreign: bool = False
    """The list is from another server: nothing in it is used."""


class _Evidence(msgspec.Struct, frozen=True):
    """A list, or the watch, has shown a removal of many clusters, which a second list confirms."""

    confirmed_from: float
    """The time from which on a second list counts as confirmation."""
    is_foreign: bool = False
    """The list was from another server."""


class RemovalGuard:
    def __init__(self, limits: RemovalLimits) -> None:
        self.limits = limits
        self.held: HeldRemovals | None = None
        """The message for operators about removals that are held, or lists that are ignored."""
        self.relist_at: float | None = None
        """When to list again because of held removals; None if lists of the current server are not accepted as
        evidence."""
        self.ignores_lists = False
        """The last list was older than what was seen, so nothing of it was used."""
        self._evidence: _Evidence | None = None
        self._behind_since: float | None = None
        self.restored_at: str | None = None
        """The latest version of a server that counts as restored, while its lists are older than before the restore."""
        self._held_by_restore: HeldRemovals | None = None
        self._accepts = False
        self._reported: deque[float] = deque()
        """When the watch reported recent deletions of engaged clusters."""
        self.verify_first_at: float | None = None
        """When the second list of this run is due, which tells whether the first one was complete; None before the
        first one, and if it is verified."""
        self.is_verified = False
        """Whether this run accepted a list and, later, a second one."""

    @property
    def holds_restored(self) -> bool:
        """Whether clusters are held because the server was restored."""
        return self._held_by_restore is not None

    @property
    def is_accepting(self) -> bool:
        """Whether the next list is accepted whatever it lacks."""
        return self._accepts

    def _listed(self, now: float, *, is_accepted: bool) -> None:
        """Record a complete list that is applied."""
        if self.verify_first_at is None:
            self.verify_first_at = now + self.limits.verify_after_s
        elif now >= self.verify_first_at or is_accepted:
            self.is_verified, self.verify_first_at = True, None

    def verify_first(self, now: float) -> None:
        """Make the second list of this run due, which verifies the first one."""
        if self.verify_first_at is not None:
            self.verify_first_at = min(self.verify_first_at, now)

    def accept(self, now: float) -> bool:
        """Request another list and accept it. Return whether any removals are held."""
        if self.held is not None:
            self._accepts, self.relist_at = True, now
        return self._accepts

    def reported(self, engaged: int, now: float) -> HeldRemovals | None:
        """Count a deletion that the watch reported, of one of `engaged` clusters; return why it is held, if it is."""
        while self._reported and self._reported[0] <= now - self.limits.verify_after_s:
            self._reported.popleft()
        self._reported.append(now)
        count = len(self._reported)
        if count <= max(self.limits.count, self.limits.share * (engaged + count)):
            return None
        if self.held is not None:
            return self.held
        message = (
            f"the API server's watch reported the deletion of {count} of its clusters within "
            f"{self.limits.verify_after_s:g} s: further ones stay engaged until a list lacks them too"
        )
        return self._hold(HeldRemovals(now, message), _Evidence(now + self.limits.verify_after_s))

    def _hold(self, held: HeldRemovals, evidence: _Evidence | None = None) -> HeldRemovals:
        self.held, self._evidence, self.ignores_lists = held, evidence, False
        self.relist_at = None if evidence is None else evidence.confirmed_from
        return held

    def is_behind(self, version: str, *, versions_went_back: bool) -> bool:
        """Return whether a list is older than what was seen before, or since a restore."""
        if not versions_went_back:
            self.restored_at = None
            return False
        if self._accepts or (self.restored_at is not None and not is_older(version, self.restored_at)):
            self.restored_at = version
            return False
        return True

    def note_version(self, version: str) -> None:
        """Record the version of a change, to detect a second restore, from a backup made since the first."""
        assert self.restored_at is not None, "the server counts as restored"
        if is_older(self.restored_at, version):
            self.restored_at = version

    def ignores(self, version: str, *, is_behind: bool, now: float) -> bool:
        """Return whether to ignore a list because it is older than what was seen before.

        A replica that lags behind catches up. After `verify_after_s` the server counts as restored from a backup.
        """
        if not is_behind:
            self._behind_since = None
            return False
        if self._behind_since is None:
            self._behind_since = now
        if now >= self._behind_since + self.limits.verify_after_s:
            self.restored_at, self._behind_since = version, None
            return False
        message = (
            "the API server's list is older than what it showed before: it is ignored until the server has caught up, "
            f"or for {self.limits.verify_after_s:g} s"
        )
        self._hold(HeldRemovals(self._behind_since, message))
        self.ignores_lists, self.relist_at = True, now + self.limits.verify_after_s / _LISTS_WHILE_BEHIND
        return True

    def judge(
        self,
        missing: Sequence[tuple[str, str]],
        engaged: int,
        *,
        versions_went_back: bool,
        now: float,
        is_foreign: bool = False,
        is_restored: bool = False,
        is_much_larger: bool = False,
        still_held: int = 0,
    ) -> ListJudgement:
        """Decide about the clusters that a complete list lacks, out of `engaged` ones.

        The list `is_foreign` if it contains objects, but none that is known, and `is_much_larger` if it has so many
        more than are known that lacking these would be a mass removal. `is_restored`: no list of this run was accepted,
        so the known state is that of an earlier run. `still_held` clusters are held since a restore: the list lacks
        them as well, or shows them in
        their old state.
        """
        evidence, is_accepted = self._evidence, self._accepts
        since = now if self.held is None or self.ignores_lists else self.held.since
        self.held = self.relist_at = self._evidence = None
        self._accepts = self.ignores_lists = False
        if is_accepted or not (still_held or versions_went_back):
            self._held_by_restore = None
        decision: RemovalDecision
        if is_accepted:
            decision = ConfirmAtRate(self.limits.per_second) if missing else ConfirmEach()
        elif not missing:
            self.held, decision = self._held_by_restore, ConfirmEach()
        elif is_foreign and engaged > 1 and not (is_restored and versions_went_back):
            is_yielding = is_restored or (is_much_larger and self.verify_first_at is not None)
            decision = self._judge_foreign(engaged, since, evidence, now, is_yielding=is_yielding)
        elif versions_went_back:
            decision = self._hold_restored(len(missing), engaged, since)
        else:
            decision = self._judge_own(len(missing), engaged, since, evidence, now)
        # A list that is ignored or held is no evidence about the first one.
        if not (self.is_verified or isinstance(decision, HeldRemovals)):
            self._listed(now, is_accepted=is_accepted)
        is_ignored = self._evidence is not None and self._evidence.is_foreign
        return ListJudgement([JudgedRemovals(missing, decision)], is_ignored)

    def _judge_foreign(
        self, engaged: int, since: float, evidence: _Evidence | None, now: float, *, is_yielding: bool
    ) -> RemovalDecision:
        """Decide about a list that names no known object.

        It is ignored. What is known `is_yielding` to a second such list if it is that of a state file, or if it may be
        of another server itself, as of one that started on an empty store: it is that of the first list of this run,
        which is not verified, and this one has far more objects.
        """
        due_at = evidence.confirmed_from if evidence is not None and evidence.is_foreign else None
        is_second = due_at is not None and now >= due_at
        if is_second and is_yielding:
            self.verify_first_at = None
            return ConfirmAtRate(self.limits.per_second)
        message = (
            f"the API server's list names none of the {engaged} engaged clusters, so it may be another server: "
            f"its lists are ignored until one names a known object{', or until a second list' if is_yielding else ''}"
        )
        due_at = now + self.limits.verify_after_s if due_at is None or is_second else due_at
        return self._hold(HeldRemovals(since, message), _Evidence(due_at, is_foreign=True))

    def _hold_restored(self, missing: int, engaged: int, since: float) -> HeldRemovals:
        self._held_by_restore = HeldRemovals(
            since,
            "the API server's resource versions went back, as after a restore from a backup, and its list lacks "
            f"{missing} of {engaged} engaged clusters or shows them in an older state: these stay as they are until "
            f"they are seen again, or until {ACCEPT}",
        )
        return self._hold(self._held_by_restore)

    def _judge_own(
        self, missing: int, engaged: int, since: float, evidence: _Evidence | None, now: float
    ) -> RemovalDecision:
        """Decide about the clusters that a list of the followed server lacks."""
        is_mass = self.limits.is_mass(missing, engaged)
        if self._held_by_restore is not None:
            self.held = self._held_by_restore
            return self.held if is_mass else ConfirmEach()
        # Another server's list is no evidence about this server.
        due_at = evidence.confirmed_from if evidence is not None and not evidence.is_foreign else None
        # Later lists may lack fewer: a server that loads its store, or a directory that is filled again.
        is_early = due_at is not None and now < due_at
        if not (is_early or is_mass):
            return ConfirmEach()
        if due_at is not None and not is_early:
            return ConfirmAtRate(self.limits.per_second)
        message = (
            f"its list lacks {missing} of {engaged} engaged clusters: these stay engaged until a second list lacks "
            "them too"
        )
        due_at = now + self.limits.verify_after_s if due_at is None else due_at
        return self._hold(HeldRemovals(since, message), _Evidence(due_at))

    def is_catching_up(self, since: float, now: float) -> bool:
        """Return whether reads that have returned older states since `since` may come from a lagging replica."""
        return now < since + self.limits.verify_after_s

    def older_read(self, since: float, now: float) -> HeldRemovals | None:
        """Hold a cluster whose reads have returned an older version than the known one since `since`.

        Returns None while a replica may still be catching up.
        """
        if self.is_catching_up(since, now):
            return None
        self._held_by_restore = HeldRemovals(
            since if self.held is None else self.held.since,
            "the API server has a cluster in an older version than it showed before, as after a restore from a backup: "
            f"it stays as it is until it is seen again, or until {ACCEPT}",
        )
        return self._hold(self._held_by_restore)

    def contradicted(self, now: float) -> HeldRemovals:
        """Hold again: a cluster that both lists lacked was found, so neither list is evidence."""
        message = (
            "the API server has clusters that its lists lack: all missing clusters stay engaged until its lists are "
            "complete"
        )
        return self._hold(HeldRemovals(now, message), _Evidence(now + self.limits.verify_after_s))
