"""The guard against mass removal: a list from which a large part of the fleet is missing is not accepted at once.

An API server that was restored from a backup, that started on an empty store, or that was replaced by a different one
behind the same address, answers lists and single reads consistently but incorrectly. Accepting these answers would make
every operator stop work on every cluster. So the removals are held until a second list, `verify_after_s` later. Each
cluster that is missing from the second list, whether or not it was missing from the first, is confirmed by a read of
its object, at a limited rate. Once one of these reads finds its object, all removals that are not confirmed yet are
held again. If the server's resource versions went back, the clusters are held until an administrator accepts what the
server shows. This does not apply to clusters that the server has shown since the restore.

Deletions that a watch reports are held in the same way if there are many of them within a short time: when the
definition of a resource is deleted, the API server deletes all objects one by one.

To hold a removal means that the cluster stays engaged, and that no read is sent that could confirm the deletion. `Hold`
is what the guard waits for, `HeldRemovals` is the message for operators, and `PendingDeletions.is_held` returns whether
the removal of one object is held. The guard counts established objects (see `ObjectRecord.is_established`), which its
messages call engaged clusters.
"""

from collections import deque
from collections.abc import Sequence, Set
from typing import ClassVar

import msgspec

from milo_discoveryd.model.removal_limits import RemovalLimits
from milo_discoveryd.objects.store import ObjectStore
from milo_kube.reflect.versions import is_older

ACCEPT = "an administrator accepts what the server shows (SIGUSR2)"
_LISTS_WHILE_BEHIND = 6
"""Number of lists that are requested before a server whose versions went back is considered restored."""


class HeldRemovals(msgspec.Struct, frozen=True):
    """The message for operators while removals are held."""

    since: float
    message: str


class ConfirmEach(msgspec.Struct, frozen=True):
    """Confirm each missing cluster by a read of the object, as usual."""


class ConfirmAtRate(msgspec.Struct, frozen=True):
    """Confirm each missing cluster, at a limited rate."""

    per_second: float


RemovalDecision = ConfirmEach | HeldRemovals | ConfirmAtRate


class JudgedRemovals(msgspec.Struct, frozen=True):
    """A group of objects that are missing from a list, and what to do about them."""

    objects: Sequence[tuple[str, str]]
    """Names and UIDs."""
    decision: RemovalDecision


class ListJudgement(msgspec.Struct, frozen=True):
    removals: Sequence[JudgedRemovals]
    """All removals of the list, in groups. Each object is in one group."""
    is_foreign: bool = False
    """The list is from another server: nothing in it is used."""


class AwaitsSecondList(msgspec.Struct, frozen=True):
    """A list, or the watch, has shown a removal of many clusters, which a second list has to confirm."""

    held: HeldRemovals
    relist_at: float
    """When the second list is due. An earlier list confirms nothing."""


class AwaitsKnownObjects(msgspec.Struct, frozen=True):
    """A list contained no known object, so it may be from another server. It neither confirms nor contradicts other
    lists."""

    held: HeldRemovals
    relist_at: float


class AwaitsNewerList(msgspec.Struct, frozen=True):
    """A list was older than the known state, so it was ignored: the server lags behind, or was restored."""

    held: HeldRemovals
    relist_at: float


class AwaitsAdministrator(msgspec.Struct, frozen=True):
    """The server was restored from a backup, so its lists are no evidence."""

    held: HeldRemovals
    relist_at: float | None = None
    """Set once an administrator accepts what the server shows."""


Hold = AwaitsSecondList | AwaitsKnownObjects | AwaitsNewerList | AwaitsAdministrator
"""What the guard waits for while it holds removals or ignores lists, with the message for operators and the time of the
next list."""


class FirstListExpected(msgspec.Struct, frozen=True):
    """This run has not accepted a list yet, or no longer relies on the one that it had accepted."""

    verify_at: ClassVar[None] = None


class FirstListUnverified(msgspec.Struct, frozen=True):
    """This run accepted one list. A second one shows whether it was complete."""

    verify_at: float
    """When the second list is due."""


class FirstListVerified(msgspec.Struct, frozen=True):
    """This run accepted a list and, later, a second one."""

    verify_at: ClassVar[None] = None


class RemovalGuard:
    def __init__(self, limits: RemovalLimits) -> None:
        self.limits = limits
        self.hold: Hold | None = None
        self._restore: AwaitsAdministrator | None = None
        """The hold since a restore. It is kept while `hold` is a different hold, and becomes `hold` again after
        that."""
        self._behind_since: float | None = None
        self.restored_at: str | None = None
        """The version with which lists are compared while they are older than the highest version seen: the latest
        version of a server that counts as restored, or that of the last list before a foreign one. Otherwise None."""
        self._accepts = False
        self._deletions_reported: deque[float] = deque()
        """When the watch reported recent deletions of established objects."""
        self.first_list: FirstListExpected | FirstListUnverified | FirstListVerified = FirstListExpected()

    @property
    def held(self) -> HeldRemovals | None:
        """The message for operators about removals that are held, or lists that are ignored."""
        return None if self.hold is None else self.hold.held

    @property
    def relist_at(self) -> float | None:
        """When to list again because of held removals; None if no removals are held, or if lists of the current server
        are not accepted as evidence."""
        return None if self.hold is None else self.hold.relist_at

    @property
    def ignores_lists(self) -> bool:
        """Whether the last list was older than the known state, and ignored for that reason."""
        return isinstance(self.hold, AwaitsNewerList)

    @property
    def holds_restored(self) -> bool:
        """Whether clusters are held because the server was restored."""
        return self._restore is not None

    @property
    def is_accepting(self) -> bool:
        """Whether the next list is accepted regardless of what is missing from it."""
        return self._accepts

    @property
    def is_verified(self) -> bool:
        """Whether this run accepted a list and, later, a second one."""
        return isinstance(self.first_list, FirstListVerified)

    def _listed(self, now: float, *, is_accepted: bool) -> None:
        """Record that a complete list was accepted: it may be the first of this run, or verify the first one."""
        match self.first_list:
            case FirstListExpected():
                self.first_list = FirstListUnverified(now + self.limits.verify_after_s)
            case FirstListUnverified(verify_at) if now >= verify_at or is_accepted:
                self.first_list = FirstListVerified()

    def verify_first(self, now: float) -> None:
        """Request the second list of this run, which verifies the first one, without further delay."""
        if isinstance(self.first_list, FirstListUnverified):
            self.first_list = FirstListUnverified(min(self.first_list.verify_at, now))

    def accept(self, now: float) -> bool:
        """Request another list and accept it. Return False if nothing is held."""
        if self.hold is not None:
            self._accepts, self.hold = True, msgspec.structs.replace(self.hold, relist_at=now)
        return self._accepts

    def deletion_reported(self, known: ObjectStore, now: float) -> HeldRemovals | None:
        """Count a deletion, reported by the watch, of an established object in `known`. Return the message for
        operators if the deletion is held, otherwise None."""
        while self._deletions_reported and self._deletions_reported[0] <= now - self.limits.verify_after_s:
            self._deletions_reported.popleft()
        self._deletions_reported.append(now)
        count = len(self._deletions_reported)
        if count <= max(self.limits.count, self.limits.share * (known.established_count + count)):
            return None
        if self.hold is not None:
            return self.hold.held
        message = (
            f"the API server's watch reported the deletion of {count} engaged clusters within "
            f"{self.limits.verify_after_s:g} s: further clusters reported as deleted stay engaged until lists lack them"
        )
        return self._await_second_list(HeldRemovals(now, message), now + self.limits.verify_after_s)

    def _await_second_list(self, held: HeldRemovals, due_at: float) -> HeldRemovals:
        self.hold = AwaitsSecondList(held, due_at)
        return held

    def _await_administrator(self, held: HeldRemovals) -> HeldRemovals:
        self.hold = self._restore = AwaitsAdministrator(held)
        return held

    def is_behind(self, version: str, *, versions_went_back: bool) -> bool:
        """Return whether a list is older than the state seen before it or, after a restore, the state seen since the
        restore."""
        if not versions_went_back:
            self.restored_at = None
            return False
        if self._accepts or (self.restored_at is not None and not is_older(version, self.restored_at)):
            self.restored_at = version
            return False
        return True

    def note_version(self, version: str) -> None:
        """Record the version of a change after a restore. With it, a second restore is detected even if its backup was
        made after the first one."""
        assert self.restored_at is not None, "the server does not count as restored"
        if is_older(self.restored_at, version):
            self.restored_at = version

    def ignores(self, version: str, *, is_behind: bool, now: float) -> bool:
        """Return whether to ignore a list because it is older than what was seen before.

        A replica that lags behind catches up. A server that has not caught up after `verify_after_s` counts as restored
        from a backup.
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
            "the API server's list is older than the state it returned before: older lists are ignored until the "
            f"server has caught up, or for {self.limits.verify_after_s:g} s"
        )
        relist_at = now + self.limits.verify_after_s / _LISTS_WHILE_BEHIND
        self.hold = AwaitsNewerList(HeldRemovals(self._behind_since, message), relist_at)
        return True

    def judge(
        self,
        missing: Sequence[tuple[str, str]],
        known: ObjectStore,
        *,
        versions_went_back: bool,
        now: float,
        announced: Set[str] = frozenset(),
        listed_count: int = 0,
        is_foreign: bool = False,
        is_restored: bool = False,
        still_held: int = 0,
    ) -> ListJudgement:
        """Decide about the established objects in `known` that are missing from a complete list, except those whose
        deletion was `announced`.

        The list `is_foreign` if it contains objects, but none that is known. `is_restored`: no list of this run was
        accepted, so the known state is that of an earlier run. `still_held` is the number of objects that are held
        since a restore: they are also missing from this list, or it shows them in their old state.
        """
        hold, is_accepted = self.hold, self._accepts
        since = now if hold is None or isinstance(hold, AwaitsNewerList) else hold.held.since
        self.hold, self._accepts = None, False
        if is_accepted or not (still_held or versions_went_back):
            self._restore = None
        established = known.established_count - len(announced)
        decision: RemovalDecision
        if is_accepted:
            decision = ConfirmAtRate(self.limits.per_second) if missing else ConfirmEach()
        elif not missing:
            self.hold, decision = self._restore, ConfirmEach()
        elif is_foreign and established > 1 and not (is_restored and versions_went_back):
            is_much_larger = self.limits.is_mass(listed_count - known.present_count, listed_count)
            is_yielding = is_restored or (is_much_larger and isinstance(self.first_list, FirstListUnverified))
            decision = self._judge_foreign(established, since, hold, now, is_yielding=is_yielding)
        elif versions_went_back:
            decision = self._hold_restored(len(missing), established, since)
        else:
            decision = self._judge_own(len(missing), established, since, hold, now)
        # A list that is ignored or held does not show whether the first list was complete.
        if not isinstance(decision, HeldRemovals):
            self._listed(now, is_accepted=is_accepted)
        return ListJudgement([JudgedRemovals(missing, decision)], isinstance(self.hold, AwaitsKnownObjects))

    def _judge_foreign(
        self, established: int, since: float, hold: Hold | None, now: float, *, is_yielding: bool
    ) -> RemovalDecision:
        """Decide about a list that contains no known object.

        The list is ignored. If the known state `is_yielding`, a second such list replaces it. The known state yields if
        it is from the state file, or if it may itself be from the wrong server, such as one that started on an empty
        store. The latter is assumed if the known state is from the unverified first list of this run, and the new list
        has so many more objects that their loss would be a mass removal.
        """
        due_at = hold.relist_at if isinstance(hold, AwaitsKnownObjects) else None
        is_second = due_at is not None and now >= due_at
        if is_second and is_yielding:
            if not self.is_verified:
                self.first_list = FirstListExpected()
            return ConfirmAtRate(self.limits.per_second)
        message = (
            f"the source's list contains none of the {established} engaged clusters, so it may be from another server: "
            "lists are ignored until one contains a known object"
            f"{', or until a second list contains none either' if is_yielding else ''}"
        )
        held = HeldRemovals(since, message)
        due_at = now + self.limits.verify_after_s if due_at is None or is_second else due_at
        self.hold = AwaitsKnownObjects(held, due_at)
        return held

    def _hold_restored(self, missing: int, established: int, since: float) -> HeldRemovals:
        return self._await_administrator(
            HeldRemovals(
                since,
                "the API server's resource versions went back, as after a restore from a backup, and its list lacks "
                f"{missing} of {established} engaged clusters or shows them in an older state: these stay as they are "
                f"until they are seen again, or until {ACCEPT}",
            )
        )

    def _judge_own(
        self, missing: int, established: int, since: float, hold: Hold | None, now: float
    ) -> RemovalDecision:
        """Decide about the clusters that are missing from a list of the followed server."""
        is_mass = self.limits.is_mass(missing, established)
        if self._restore is not None:
            self.hold = self._restore
            return self._restore.held if is_mass else ConfirmEach()
        # Only a list of this server counts as the first of the two lists: a list of another server is no evidence about
        # this one.
        due_at = hold.relist_at if isinstance(hold, AwaitsSecondList) else None
        # Fewer clusters may be missing from later lists: a server may be loading its store, or a directory may be
        # filled again.
        is_early = due_at is not None and now < due_at
        if not (is_early or is_mass):
            return ConfirmEach()
        if due_at is not None and not is_early:
            return ConfirmAtRate(self.limits.per_second)
        message = (
            f"the source's list lacks {missing} of {established} engaged clusters: these stay engaged until a second "
            "list lacks them too"
        )
        return self._await_second_list(
            HeldRemovals(since, message), now + self.limits.verify_after_s if due_at is None else due_at
        )

    def is_catching_up(self, since: float, now: float) -> bool:
        """Return whether reads that have returned older states since `since` may have been answered by a lagging
        replica."""
        return now < since + self.limits.verify_after_s

    def older_read(self, since: float, now: float) -> HeldRemovals | None:
        """Hold a cluster whose reads have returned an older version than the known one since `since`.

        Returns None while a replica may still be catching up.
        """
        if self.is_catching_up(since, now):
            return None
        return self._await_administrator(
            HeldRemovals(
                since if self.hold is None else self.hold.held.since,
                "the API server returned an older version of a cluster than before, as after a restore from a backup: "
                f"the cluster stays as it is until it is seen again, or until {ACCEPT}",
            )
        )

    def contradicted(self, now: float) -> HeldRemovals:
        """Hold again: a cluster that was missing from both lists was found, so neither list is evidence."""
        message = (
            "a read found a cluster that the source's lists lack, so they are incomplete: missing clusters stay "
            "engaged until lists are complete"
        )
        return self._await_second_list(HeldRemovals(now, message), now + self.limits.verify_after_s)
