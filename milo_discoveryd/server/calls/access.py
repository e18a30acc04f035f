"""Authorization and quotas: what a caller may do now, under the current rules and within its remaining quotas."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.log.filter import ClusterView
from milo_discoveryd.rights.caller_selector import caller_key, quota_keys, verified_fields
from milo_discoveryd.rights.quota import QuotaLimits, Quotas
from milo_discoveryd.rights.rights import Grant, Recipient, Rights
from milo_discoveryd.rights.scope import NO_CLUSTERS, ClusterScope
from milo_discoveryd.server.calls.grpc_errors import (
    ExhaustedError,
    ForeignPageTokenError,
    NotFoundError,
    PermissionDeniedError,
)
from milo_discoveryd.server.calls.verification import AlwaysFresh, Freshness
from milo_discoveryd.server.paced_audit import CallAudit, PacedAudit

RETRY_STREAM_S = 5.0
"""The retry delay of a caller whose stream was refused. Streams can end at any time: there is no better estimate."""


class AccessControl:
    """The rules and quotas that apply to all calls."""

    def __init__(self, rights: Rights, limits: QuotaLimits, audit: CallAudit, clock: Callable[[], float]) -> None:
        self.rights = rights
        """The current rules. A replacement also applies to calls in flight."""
        self.quotas = Quotas(limits)
        self.audit = PacedAudit(audit, clock)
        self.clock = clock

    @asynccontextmanager
    async def authorize(
        self, caller: Caller, method: str, freshness: Freshness | None = None, **about: object
    ) -> AsyncIterator["CallContext"]:
        """Authorize one call, and audit its denials.

        Raises PermissionDeniedError if no rule matches the caller, or its rule denies it.
        """
        call = CallContext(self, caller, freshness)
        try:
            call.require_rule()
            yield call
        except PermissionDeniedError as error:
            call.refused(error.reason, call=method, **about)
            await call.penalize_miss()
            raise
        except ExhaustedError as error:
            call.refused(error.reason, call=method, **about)
            raise
        except ForeignPageTokenError:
            call.refused("PAGE_TOKEN_OF_ANOTHER", call=method, **about)
            raise
        except NotFoundError as error:
            # The delay does not depend on whether the name exists, so timing reveals nothing. This also audits
            # enumeration.
            if not call.scope.is_everything:
                call.refused(error.reason, call=method, **about)
                await call.penalize_miss()
            raise


class CallContext:
    """One authorized call, with its caller and that caller's rights and quotas."""

    def __init__(self, access: AccessControl, caller: Caller, freshness: Freshness | None = None) -> None:
        self.caller = caller
        self.identity = caller_key(caller)
        self.freshness = freshness or AlwaysFresh()
        self.quota_keys = quota_keys(caller)
        self._access = access
        self._rights = access.rights
        self._grant = access.rights.grant_for(caller)

    @property
    def grant(self) -> Grant | None:
        """The rights that the current rules grant; None if no rule matches the caller any more."""
        if self._rights is not self._access.rights:
            self._rights = self._access.rights
            self._grant = self._rights.grant_for(self.caller)
        return self._grant

    @property
    def rule(self) -> str:
        return "" if self.grant is None else self.grant.rule

    def holder(self, shown: ClusterView) -> str:
        """Return the identifier to which revisions and page tokens are bound: this caller and its view."""
        return f"{shown.fingerprint} {self.identity}"

    @property
    def scope(self) -> ClusterScope:
        return NO_CLUSTERS if self.grant is None else self.grant.scope

    @property
    def recipient(self) -> Recipient | None:
        """The caller as a recipient of kubeconfigs; None if the caller may not have any."""
        grant = self.grant
        return None if grant is None or grant.terms is None else Recipient(self.caller, grant.rule, grant.terms)

    def require_rule(self) -> None:
        """Require a rule that matches the caller and shows it clusters. Raises PermissionDeniedError."""
        if self.grant is None:
            reason, why = "NO_RULE", "no authorization rule matches"
        elif self.grant.scope.is_empty:
            reason, why = "DENIED_BY_RULE", f"rule {self.rule!r} denies"
        else:
            return
        identity = ", ".join(
            f"{field} {value}" for field, value in verified_fields(self.caller) if field not in ("peer", "pid")
        )
        raise PermissionDeniedError(reason, f"{why} this caller ({identity}); ask the daemon's administrator")

    def require_kubeconfigs(self) -> Recipient:
        """Require the right to kubeconfigs. Raises PermissionDeniedError."""
        self.require_rule()
        recipient = self.recipient
        if recipient is None:
            why = f"rule {self.rule!r} does" if self.rule else "without rules in `rights`, TCP listeners do"
            raise PermissionDeniedError("KUBECONFIGS_DENIED", f"{why} not grant kubeconfigs")
        return recipient

    @contextmanager
    def stream_slot(self, filter_bytes: int = 0) -> Iterator[None]:
        """Count an open stream, and the memory of its request. Raises ExhaustedError."""
        quotas = self._access.quotas
        limit = None if self.grant is None else self.grant.streams
        denial = quotas.open_stream(self.quota_keys, limit, filter_bytes)
        if denial is not None:
            raise ExhaustedError(denial.reason, denial.subject, denial.message, retry_after_s=RETRY_STREAM_S)
        try:
            yield
        finally:
            quotas.close_stream(self.quota_keys, filter_bytes)

    def shares_quotas(self, other: Caller) -> bool:
        """Return whether the other caller shares a quota with this one."""
        return not frozenset(self.quota_keys).isdisjoint(quota_keys(other))

    def take_kubeconfig(self, *, is_renewal: bool = False) -> float:
        """Count one kubeconfig against the quota and return 0, or return the seconds until the next is available."""
        recipient = self.recipient
        limit = None if recipient is None else recipient.terms.per_minute
        return self._access.quotas.take_kubeconfig(self.quota_keys, limit, self._access.clock(), is_renewal=is_renewal)

    def charge_kubeconfig(self) -> None:
        """Count one kubeconfig against the quota. Raises ExhaustedError."""
        wait_s = self.take_kubeconfig()
        if wait_s:
            message = f"kubeconfig quota reached for this caller; the next is available in {wait_s:.1f} s"
            raise ExhaustedError("TOO_MANY_KUBECONFIGS", "kubeconfigs per minute", message, retry_after_s=wait_s)

    async def penalize_miss(self) -> None:
        """Delay the response to a denied request, or to a request for an unknown name; the delay grows with the number
        of such requests."""
        await asyncio.sleep(self._access.quotas.count_miss(self.quota_keys, self._access.clock()))

    def noted(self, event: str, **about: object) -> None:
        """Record the successful call in the audit log."""
        self._access.audit.noted(self.caller, self.rule, event, **about)

    def noted_at_rate(self, event: str, **about: object) -> None:
        """Record an effect of the call in the audit log, subject to the rate limit for denials."""
        self._access.audit.noted_at_rate(self.caller, self.rule, event, **about)

    def refused(self, reason: str, **about: object) -> None:
        """Record a denial in the audit log."""
        self._access.audit.refused(self.caller, self.rule, reason, **about)
