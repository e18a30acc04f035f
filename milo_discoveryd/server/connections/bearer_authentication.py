"""Authentication of calls by bearer token."""

from typing import Protocol

import msgspec

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.review_budget import TokenOrigin
from milo_discoveryd.identity.token_review import (
    TokenRejectedError,
    TokenReviewLimitError,
    TokenReviewUnavailableError,
)
from milo_discoveryd.identity.token_review_cache import ACCEPTED_S, TokenUser
from milo_discoveryd.server.calls.grpc_errors import TooManyReviewsError, UnauthenticatedError, UnavailableError
from milo_discoveryd.server.calls.rpc_context import Authenticator, RpcContext
from milo_discoveryd.server.paced_audit import PacedAudit


class Reviewer(Protocol):
    async def authenticate(self, token: str, origin: TokenOrigin, *, max_age_s: float) -> TokenUser:
        """Return the token's user. Raises TokenRejectedError and TokenReviewUnavailableError."""


class BearerAuthentication:
    """Adds the user of a call's bearer token to the identity of the connection. Calls without a token are admitted."""

    def __init__(self, connection: Authenticator, reviewer: Reviewer, audit: PacedAudit) -> None:
        self._connection = connection
        self._reviewer = reviewer
        self._audit = audit

    async def identify(self, context: RpcContext, *, max_age_s: float | None = None) -> Caller:
        caller = await self._connection.identify(context)
        try:
            token = _bearer(context)
            if token is None:
                return caller
            max_age_s = ACCEPTED_S if max_age_s is None else max_age_s
            user = await self._reviewer.authenticate(token, self.origin(context), max_age_s=max_age_s)
        except TokenRejectedError as error:
            self._audit.refused(caller, "", "TOKEN_REJECTED", problem=str(error))
            raise UnauthenticatedError("TOKEN_REJECTED", f"bearer token rejected: {error}") from None
        except TokenReviewLimitError as error:
            self._audit.refused(caller, "", "TOKEN_NOT_REVIEWED", problem=str(error))
            raise TooManyReviewsError("TOKEN_NOT_REVIEWED", str(error), retry_after_s=error.retry_after_s) from None
        except TokenReviewUnavailableError as error:
            raise UnavailableError("TOKEN_NOT_REVIEWED", str(error), retry_after_s=error.retry_after_s) from None
        ends = [expires_at for expires_at in (caller.expires_at, user.expires_at) if expires_at is not None]
        return msgspec.structs.replace(caller, user=user.name, groups=user.groups, expires_at=min(ends, default=None))

    def origin(self, context: RpcContext) -> TokenOrigin:
        return self._connection.origin(context)

    def connected(self, context: RpcContext) -> Caller:
        return self._connection.connected(context)

    def taken(self, context: RpcContext) -> None:
        self._connection.taken(context)

    def count_call(self, context: RpcContext, change: int) -> None:
        self._connection.count_call(context, change)

    def refused(self, context: RpcContext) -> None:
        self._connection.refused(context)

    def close(self, context: RpcContext) -> None:
        self._connection.close(context)


def _bearer(context: RpcContext) -> str | None:
    """Return the bearer token, if there is one. Raises TokenRejectedError."""
    shown = [value for key, value in context.invocation_metadata() if key.lower() == "authorization"]
    if not shown:
        return None
    scheme, _, token = str(shown[0]).partition(" ")
    if len(shown) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise TokenRejectedError('the metadata must contain exactly one "authorization: Bearer TOKEN"')
    return token.strip()
