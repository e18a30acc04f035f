"""How a listener finds out who calls."""

from typing import Protocol

import msgspec

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.token_review import TokenRejectedError, TokenReviewUnavailableError
from milo_discoveryd.identity.token_review_cache import TokenUser
from milo_discoveryd.server.calls.grpc_errors import UnauthenticatedError, UnavailableError
from milo_discoveryd.server.calls.service import Identify, RpcContext
from milo_discoveryd.server.connections.rejection_log import RejectionLog


class TokenAuthenticator(Protocol):
    async def user(self, token: str) -> TokenUser:
        """Raises TokenRejectedError and TokenReviewUnavailableError."""


def identify_by_listener(listener: str) -> Identify:
    """Whoever may connect there; that is all that is known."""

    async def identify(context: RpcContext) -> Caller:
        return Caller(listener=listener, peer=context.peer())

    return identify


def identify_by_token(connected: Identify, reviews: TokenAuthenticator, rejections: RejectionLog) -> Identify:
    """Besides what the connection proves: who shows a token is whom it is of, and who shows none proves no more."""

    async def identify(context: RpcContext) -> Caller:
        caller = await connected(context)
        try:
            token = _bearer(context)
            if token is None:
                return caller
            user = await reviews.user(token)
        except TokenRejectedError as error:
            rejections.tell(caller, "TOKEN_REJECTED", str(error))
            raise UnauthenticatedError("TOKEN_REJECTED", f"your bearer token was turned down: {error}") from None
        except TokenReviewUnavailableError as error:
            raise UnavailableError("TOKEN_NOT_REVIEWED", str(error), retry_after_s=error.retry_after_s) from None
        ends = [each for each in (caller.until, user.until) if each is not None]
        return msgspec.structs.replace(caller, user=user.name, groups=user.groups, until=min(ends, default=None))

    return identify


def _bearer(context: RpcContext) -> str | None:
    """Raises TokenRejectedError."""
    shown = [value for key, value in context.invocation_metadata() if key.lower() == "authorization"]
    if not shown:
        return None
    scheme, _, token = str(shown[0]).partition(" ")
    if len(shown) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise TokenRejectedError('the call\'s metadata has to have one "authorization: Bearer TOKEN"')
    return token.strip()
