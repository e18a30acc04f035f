"""How a listener finds out who calls."""

from typing import Protocol

import msgspec

from milo_discoveryd.identity.caller import Caller
from milo_discoveryd.identity.token_review import RejectedError, UnreviewedError
from milo_discoveryd.identity.token_review_cache import User
from milo_discoveryd.server.calls.grpc_errors import UnauthenticatedError, UnavailableError
from milo_discoveryd.server.calls.service import Context, Identify
from milo_discoveryd.server.connections.rejected_callers import Refusals


class Reviews(Protocol):
    async def user(self, token: str) -> User:
        """Raises RejectedError and UnreviewedError."""


def anybody(listener: str) -> Identify:
    """Whoever may connect there; that is all that is known."""

    async def identify(context: Context) -> Caller:
        return Caller(listener=listener, peer=context.peer())

    return identify


def by_token(connected: Identify, reviews: Reviews, refusals: Refusals) -> Identify:
    """Besides what the connection proves: who shows a token is whom it is of, and who shows none proves no more."""

    async def identify(context: Context) -> Caller:
        caller = await connected(context)
        try:
            token = _bearer(context)
            if token is None:
                return caller
            user = await reviews.user(token)
        except RejectedError as error:
            refusals.tell(caller, "TOKEN_REJECTED", str(error))
            raise UnauthenticatedError("TOKEN_REJECTED", f"your bearer token was turned down: {error}") from None
        except UnreviewedError as error:
            raise UnavailableError("TOKEN_NOT_REVIEWED", str(error), retry_after_s=error.retry_after_s) from None
        ends = [each for each in (caller.until, user.until) if each is not None]
        return msgspec.structs.replace(caller, user=user.name, groups=user.groups, until=min(ends, default=None))

    return identify


def _bearer(context: Context) -> str | None:
    """Raises RejectedError."""
    shown = [value for key, value in context.invocation_metadata() if key.lower() == "authorization"]
    if not shown:
        return None
    scheme, _, token = str(shown[0]).partition(" ")
    if len(shown) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise RejectedError('the call\'s metadata has to have one "authorization: Bearer TOKEN"')
    return token.strip()
