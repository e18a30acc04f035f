"""A list that lacks most of the fleet is not believed at once.

An API server that was restored from a backup, that came up on an empty store, or that is another one behind the same
address answers lists and looks at single objects truthfully, and all wrong. Whoever believed it would tell every
operator to let go of everything. So such a list is held: nobody is disengaged for it until a second list, some time
later, lacks the same; and never, short of a restart, where the server's versions went back.
"""

from collections.abc import Sized

import msgspec


class RemovalLimits(msgspec.Struct, frozen=True, kw_only=True):
    count: int = 10
    """So many engaged clusters may be missing from a list..."""
    share: float = 0.2
    """...or such a part of them, if that is more. More than half, or all, of two or more are always too many."""
    verify_after_s: float = 30.0
    per_second: float = 50.0
    """Once verified, missing clusters are asked about at this pace."""


class HeldRemovals(msgspec.Struct, frozen=True):
    """Removals that wait."""

    since: float
    verify_at: float | None
    """When to list again; None: the present server's word is not taken for it."""
    message: str
    is_foreign: bool = False
    """The list is another server's: nothing in it is for us."""


class ConfirmEach(msgspec.Struct, frozen=True):
    """About each that is missing, as always."""


class ConfirmAtRate(msgspec.Struct, frozen=True):
    """ConfirmEach about them, no more than so many a second."""

    per_second: float


GuardDecision = ConfirmEach | HeldRemovals | ConfirmAtRate


class RemovalGuard:
    def __init__(self, limits: RemovalLimits) -> None:
        self._limits = limits
        self.held: HeldRemovals | None = None

    def judge(
        self, missing: Sized, engaged: int, *, versions_went_back: bool, now: float, is_foreign: bool = False
    ) -> GuardDecision:
        """A complete list lacks `missing` of the `engaged` clusters. What is to be done about these?

        One `is_foreign` where it names others, and not one of them.
        """
        held, self.held = self.held, None
        since = now if held is None else held.since
        if not missing:
            return ConfirmEach()
        if is_foreign and engaged > 1:
            self.held = HeldRemovals(
                since,
                now + self._limits.verify_after_s,
                f"the API server lists clusters, and none of the {engaged} that are engaged, as another one would: "
                "nothing it says is believed until it knows some of them",
                is_foreign=True,
            )
            return self.held
        if held is not None and held.is_foreign:
            held = None  # what another server said proves nothing of this one
        lacks = f"its list lacks {len(missing)} of {engaged} engaged clusters"
        if versions_went_back or (held is not None and held.verify_at is None):
            self.held = HeldRemovals(
                since,
                None,
                f"the API server's versions went back, as after a restore from a backup, and {lacks}: these stay "
                "engaged until they are seen again or the daemon is started anew",
            )
            return self.held
        if not self._is_mass(len(missing), engaged):
            return ConfirmEach()
        verify_at = now + self._limits.verify_after_s if held is None or held.verify_at is None else held.verify_at
        if held is not None and now >= verify_at:
            return ConfirmAtRate(self._limits.per_second)
        self.held = HeldRemovals(
            since, verify_at, f"{lacks}: these stay engaged until a second list, later, lacks them as well"
        )
        return self.held

    def contradicted(self, now: float) -> HeldRemovals:
        """One that both lists lack is there: neither is to be believed."""
        self.held = HeldRemovals(
            now,
            now + self._limits.verify_after_s,
            "the API server has clusters that its lists lack: all that are missing stay engaged until lists are whole",
        )
        return self.held

    def _is_mass(self, missing: int, engaged: int) -> bool:
        if engaged < 2:
            return False
        return 2 * missing > engaged or missing > max(self._limits.count, self._limits.share * engaged)
