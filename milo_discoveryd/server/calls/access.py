"""What callers may do at present: by the rules as they are now, and by how much is left of what is limited."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.registry.filter import ClusterView
from milo_discoveryd.rights.caller_selector import caller_key, verified_fields
from milo_discoveryd.rights.quota import QuotaLimits, Quotas
from milo_discoveryd.rights.rights import Grant, Recipient, Rights
from milo_discoveryd.rights.scope import NO_CLUSTERS, ClusterScope
from milo_discoveryd.server.calls.grpc_errors import (
    ExhaustedError,
    ForeignPageTokenError,
    NotFoundError,
    PermissionDeniedError,
)

RETRY_STREAM_S = 5.0
"""A stream may end at any time, and no other way of knowing when there is room again is better than asking."""


class DenialAudit(Protocol):
    """Who writes down what is refused."""

    def refused(self, caller: Caller, rule: str, reason: str, **about: object) -> None: ...


class AccessControl:
    def __init__(self, rights: Rights, limits: QuotaLimits, audit: DenialAudit, clock: Callable[[], float]) -> None:
        self.rights = rights
        """As of now. Visits notice when they are others."""
        self.quotas = Quotas(limits)
        self.audit = audit
        self.clock = clock

    @asynccontextmanager
    async def authorize(self, caller: Caller, method: str, **about: object) -> AsyncIterator["CallContext"]:
        """Raises PermissionDeniedError for whom no rule is for. What is refused on the way is written down."""
        call = CallContext(self, caller)
        try:
            call.admitted()
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
            # There or not, so that it takes as long: who guesses names is to be noticed, and to learn nothing.
            if not call.scope.is_everything:
                call.refused(error.reason, call=method, **about)
                await call.penalize_miss()
            raise


class CallContext:
    """One caller, for the time of one call."""

    def __init__(self, access: AccessControl, caller: Caller) -> None:
        self.caller = caller
        self.identity = caller_key(caller)
        self._access = access
        self._rights = access.rights
        self._grant = access.rights.of(caller)

    @property
    def grant(self) -> Grant | None:
        """By the rules as they are now; None where none is for the caller any more."""
        if self._rights is not self._access.rights:
            self._rights = self._access.rights
            self._grant = self._rights.of(self.caller)
        return self._grant

    @property
    def rule(self) -> str:
        return "" if self.grant is None else self.grant.rule

    def holder(self, shown: ClusterView) -> str:
        """To whom revisions and page tokens are given: this caller, for what it is shown."""
        return f"{shown.fingerprint} {self.identity}"

    @property
    def scope(self) -> ClusterScope:
        return NO_CLUSTERS if self.grant is None else self.grant.scope

    @property
    def recipient(self) -> Recipient | None:
        """None: of no kubeconfigs."""
        grant = self.grant
        return None if grant is None or grant.terms is None else Recipient(self.caller, grant.rule, grant.terms)

    def admitted(self) -> None:
        """Raises PermissionDeniedError."""
        if self.grant is None:
            known = ", ".join(
                f"{word} {value}" for word, value in verified_fields(self.caller) if word not in ("peer", "pid")
            )
            raise PermissionDeniedError(
                "NO_RULE", f"no rule of this daemon is for you ({known}): ask who runs it for one"
            )

    def require_kubeconfigs(self) -> Recipient:
        """Raises PermissionDeniedError."""
        self.admitted()
        recipient = self.recipient
        if recipient is None:
            raise PermissionDeniedError("KUBECONFIGS_DENIED", f"rule {self.rule!r} gives you no kubeconfigs")
        return recipient

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Raises ExhaustedError."""
        quotas = self._access.quotas
        refusal = quotas.open(self.identity, None if self.grant is None else self.grant.streams)
        if refusal:
            raise ExhaustedError("TOO_MANY_STREAMS", "streams", refusal, retry_after_s=RETRY_STREAM_S)
        try:
            yield
        finally:
            quotas.close(self.identity)

    @property
    def streams(self) -> int:
        """That the caller has open."""
        return self._access.quotas.streams(self.identity)

    def take_kubeconfig(self) -> float:
        """One of those that may be had in a minute: 0 if there is one, else how many seconds to wait for it."""
        recipient = self.recipient
        limit = None if recipient is None else recipient.terms.per_minute
        return self._access.quotas.take(self.identity, limit, self._access.clock())

    def charge_kubeconfig(self) -> None:
        """The same, for who can't wait. Raises ExhaustedError."""
        wait_s = self.take_kubeconfig()
        if wait_s:
            message = f"all kubeconfigs that you may have in a minute were handed out; the next is in {wait_s:.1f} s"
            raise ExhaustedError("TOO_MANY_KUBECONFIGS", "kubeconfigs per minute", message, retry_after_s=wait_s)

    async def penalize_miss(self) -> None:
        """Returns when the caller may know. One who seldom does waits for nothing."""
        await asyncio.sleep(self._access.quotas.miss(self.identity, self._access.clock()))

    def refused(self, reason: str, **about: object) -> None:
        """For the audit."""
        self._access.audit.refused(self.caller, self.rule, reason, **about)
