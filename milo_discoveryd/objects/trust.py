"""Decides whether a complete list is believed: the one place where it is decided that a missing object may go. Pure.

An API server that was restored from a backup, that started on an empty store, that lags behind, or that was replaced by
a different one behind the same address, answers lists and single reads consistently but incorrectly. Accepting these
answers would make every operator stop work on every cluster. `Trust` is what is known about such a server: what the
known state rests on (its basis), and why the last list was not believed (its doubt). A list, or a deletion that a watch
reports, changes it and gets a verdict. The table of all cases is in designs/0011-one-decision-about-removals.md.

To hold a removal means that the cluster stays engaged, and that no read is sent that could confirm the deletion.
Established objects (see `ObjectRecord.is_established`) are counted, which messages call engaged clusters.
"""

import enum
from typing import ClassVar

import msgspec

from milo_discoveryd.model.removal_limits import RemovalLimits

ACCEPT = "an administrator accepts what the server shows (SIGUSR2)"
_LISTS_WHILE_BEHIND = 6
"""Number of lists that are requested before a server whose versions went back is considered restored."""
_IGNORED_FOR_S = 30.0
"""The longest time for which a list, with the watch that follows it, is ignored before the next list is requested."""


class Nothing(msgspec.Struct, frozen=True):
    """No list was used yet, and no state was stored."""

    verify_at: ClassVar[None] = None


class Stored(msgspec.Struct, frozen=True):
    """The known state is that of an earlier run. No list of this run was used yet."""

    verify_at: ClassVar[None] = None


class Unverified(msgspec.Struct, frozen=True):
    """One list of this run was used. A second one shows whether it was complete."""

    verify_at: float
    """When the second list is due."""


class Verified(msgspec.Struct, frozen=True):
    """A list of this run was used and, later, a second one."""

    verify_at: ClassVar[None] = None


Basis = Nothing | Stored | Unverified | Verified
"""What the known state rests on."""


class Why(enum.Enum):
    """Why the last list is doubted."""

    BEHIND = "behind"
    """It was older than the known state: the server lags behind, or was restored from a backup."""
    FOREIGN = "foreign"
    """It contained objects, but none that is known: it may be from another server."""
    MASS = "mass"
    """It lacked a large part of the fleet, or the watch reported the deletion of such a part."""


class Doubt(msgspec.Struct, frozen=True):
    why: Why
    since: float
    relist_at: float
    """When to list again."""
    message: str
    """The message for operators."""


class Trust(msgspec.Struct, frozen=True):
    """Whether the objects of a collection are those of the server, and which of its lists is believed next."""

    basis: Basis = Nothing()
    doubt: Doubt | None = None
    version: str = ""
    """The resource version up to which the collection is followed: that of the last list that was used, or of a later
    change, deletion, bookmark or read. Empty if the list had none."""
    accepted_at: float | None = None
    """When an administrator accepted what the next list shows; None if nobody did."""

    @property
    def is_ignoring(self) -> bool:
        """Whether the last list was ignored, so that the watch that follows it is ignored too."""
        return self.doubt is not None and self.doubt.why is not Why.MASS

    def since(self, why: Why) -> float | None:
        """Return since when lists are doubted for this reason; None if the last list was not."""
        return self.doubt.since if self.doubt is not None and self.doubt.why is why else None


class ListFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete list shows, compared with the known objects. The numbers count established objects, except
    `listed` and `known`."""

    version: str = ""
    listed: int = 0
    """The number of objects in the list."""
    known: int = 0
    """The number of objects that a complete list should contain, if this one `is_foreign`."""
    engaged: int = 0
    missing: int = 0
    """Those that the list lacks, shows under another UID, or shows in an older state, without those that were
    `announced` or `held_until_accepted`."""
    held: int = 0
    """Those of `missing` that have been missing for as long as a second list needs, and whose removal is held or was
    released."""
    announced: int = 0
    """Those that the list lacks or shows under another UID, but whose deletion was requested before."""
    regressed: int = 0
    """Those of `missing` that the list shows in an older state than the known one."""
    held_until_accepted: int = 0
    """Those that are held since a restore of the server, and that this list does not show in a newer state either."""
    is_behind: bool = False
    """The list is older than the known state."""
    is_foreign: bool = False
    """The list contains objects, but none that is known, although at least two are engaged."""


class Verdict(enum.Enum):
    """What to do with a list, and with the objects that are missing from it."""

    IGNORE = "ignore"
    """Use nothing of the list, nor of the watch that follows it."""
    CONFIRM = "confirm"
    """Use the list, and confirm each missing object by a read."""
    CONFIRM_AT_RATE = "confirm at a limited rate"
    CONFIRM_HELD_AT_RATE = "confirm what is held, at a limited rate"
    """Use the list, confirm the objects that were missing long enough, and keep the others until a further list."""
    HOLD = "hold"
    """Use the list, but keep the missing objects until a second list."""
    HOLD_UNTIL_ACCEPTED = "hold until accepted"
    """Use the list, but keep each missing object until it is seen again, or an administrator accepts what is listed."""


def judge(trust: Trust, facts: ListFacts, limits: RemovalLimits, now: float) -> tuple[Trust, Verdict]:
    """Judge a complete list."""
    if trust.accepted_at is not None:
        return _used(trust, facts, limits, now), Verdict.CONFIRM_AT_RATE if facts.missing else Verdict.CONFIRM
    if facts.is_foreign:
        return _judge_foreign(trust, facts, limits, now)
    if facts.is_behind and not _has_lasted(trust.since(Why.BEHIND), limits, now):
        return _behind(trust, limits, now), Verdict.IGNORE
    if facts.regressed or (facts.is_behind and facts.missing):
        return _restored(trust, facts, limits, now), Verdict.HOLD_UNTIL_ACCEPTED
    return _judge_missing(trust, facts, limits, now)


def _judge_foreign(trust: Trust, facts: ListFacts, limits: RemovalLimits, now: float) -> tuple[Trust, Verdict]:
    """Judge a list without any known object. It is ignored, unless the known state yields to the second such list.

    The known state yields if it was stored, or if it may itself be from the wrong server, such as one that started on
    an empty store: if it rests on one list, and the new list has so many more objects that their loss would be a mass
    removal.
    """
    since, basis = trust.since(Why.FOREIGN), trust.basis
    is_yielding = isinstance(basis, Stored) and not facts.is_behind
    if isinstance(basis, Unverified):
        is_yielding = limits.is_mass(facts.listed - facts.known, facts.listed)
    is_yielding = is_yielding and not facts.held_until_accepted
    if is_yielding and _has_lasted(since, limits, now):
        return Trust(Unverified(now + limits.verify_after_s), version=facts.version), Verdict.CONFIRM_AT_RATE
    message = (
        f"the source's list contains none of the {facts.engaged} engaged clusters, so it may be from another server: "
        f"lists are ignored until one contains a known object, "
        f"{'until a second list contains none either, ' if is_yielding else ''}or until {ACCEPT}"
    )
    relist_at = now + min(limits.verify_after_s, _IGNORED_FOR_S)
    return _doubting(trust, Doubt(Why.FOREIGN, now if since is None else since, relist_at, message)), Verdict.IGNORE


def _judge_missing(trust: Trust, facts: ListFacts, limits: RemovalLimits, now: float) -> tuple[Trust, Verdict]:
    """Judge a list of the followed server by the number of missing objects.

    Fewer may be missing from each list while a server loads its store, or a directory is filled again. So early lists
    release nothing, and the second list releases only what was held long enough, or few objects. It is the first list
    for a mass that is missing besides.
    """
    engaged = facts.engaged - facts.announced
    is_mass = limits.is_mass(facts.missing, engaged)
    if is_mass and facts.held_until_accepted:
        return _restored(trust, facts, limits, now), Verdict.HOLD_UNTIL_ACCEPTED
    doubt = trust.doubt if trust.since(Why.MASS) is not None else None
    is_early = doubt is not None and now < doubt.relist_at
    if not facts.missing or not (is_mass or is_early):
        return _used(trust, facts, limits, now), Verdict.CONFIRM
    is_second = doubt is not None and not is_early
    missing = facts.missing - facts.held if is_second else facts.missing
    if is_second and not limits.is_mass(missing, engaged):
        return _used(trust, facts, limits, now), Verdict.CONFIRM_AT_RATE
    message = (
        f"the source's list lacks {missing} of {engaged} engaged clusters: these stay engaged until a second list "
        "lacks them too"
    )
    since, relist_at = (doubt.since, doubt.relist_at) if doubt and is_early else (now, now + limits.verify_after_s)
    following = Doubt(Why.MASS, since, relist_at, message)
    if is_second and facts.held:
        return _doubting(_used(trust, facts, limits, now), following), Verdict.CONFIRM_HELD_AT_RATE
    return Trust(trust.basis, following, facts.version), Verdict.HOLD


def judge_deletion(
    trust: Trust, recent: int, engaged: int, limits: RemovalLimits, now: float
) -> tuple[Trust, str | None]:
    """Judge a deletion that a watch reports: when a definition is deleted, the API server deletes all objects one by
    one.

    `recent` is the number of such deletions within `verify_after_s` (see `RecentDeletions.report`). Returns why the
    deletion is held; None if it is confirmed as usual.
    """
    if not limits.is_burst(recent, engaged + recent):
        return trust, None
    doubt = trust.doubt
    if doubt is None:
        message = (
            f"the API server's watch reported the deletion of {recent} engaged clusters within "
            f"{limits.verify_after_s:g} s: further clusters reported as deleted stay engaged until lists lack them"
        )
        doubt = Doubt(Why.MASS, now, now + limits.verify_after_s, message)
    return _doubting(trust, doubt), doubt.message


def contradicted(trust: Trust, limits: RemovalLimits, now: float) -> Trust:
    """Return the trust after a read found an object that two lists lacked, so that neither list is evidence."""
    message = (
        "a read found a cluster that the source's lists lack, so they are incomplete: missing clusters stay engaged "
        "until lists are complete"
    )
    return _doubting(trust, Doubt(Why.MASS, now, now + limits.verify_after_s, message))


def verify_soon(trust: Trust, now: float) -> Trust:
    """Request the list that verifies the first one without further delay."""
    if not isinstance(trust.basis, Unverified):
        return trust
    return msgspec.structs.replace(trust, basis=Unverified(min(trust.basis.verify_at, now)))


def _behind(trust: Trust, limits: RemovalLimits, now: float) -> Trust:
    since = trust.since(Why.BEHIND)
    message = (
        "the API server's list is older than the state it returned before: older lists are ignored until the server "
        f"has caught up, or for {limits.verify_after_s:g} s"
    )
    relist_at = now + min(limits.verify_after_s / _LISTS_WHILE_BEHIND, _IGNORED_FOR_S)
    return _doubting(trust, Doubt(Why.BEHIND, now if since is None else since, relist_at, message))


def _restored(trust: Trust, facts: ListFacts, limits: RemovalLimits, now: float) -> Trust:
    """Return the trust after a list of a restored server, which shows nothing about the completeness of earlier
    lists."""
    is_verified = isinstance(trust.basis, Verified)
    return Trust(trust.basis if is_verified else Unverified(now + limits.verify_after_s), version=facts.version)


def _used(trust: Trust, facts: ListFacts, limits: RemovalLimits, now: float) -> Trust:
    basis = trust.basis
    match basis:
        case Nothing() | Stored():
            basis = Unverified(now + limits.verify_after_s)
        case Unverified(verify_at) if now >= verify_at or trust.accepted_at is not None:
            basis = Verified()
    return Trust(basis, version=facts.version)


def _doubting(trust: Trust, doubt: Doubt) -> Trust:
    return msgspec.structs.replace(trust, doubt=doubt)


def _has_lasted(since: float | None, limits: RemovalLimits, now: float) -> bool:
    return since is not None and now >= since + limits.verify_after_s
