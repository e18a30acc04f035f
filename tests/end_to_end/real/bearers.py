"""The user that an API server authenticates by a bearer token."""

import asyncio

from tests.end_to_end.real.api import RefusedError
from tests.end_to_end.real.servers import RealApi

_REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_UNAUTHORIZED = 401
_LONGEST_S = 60
_LOOK_EVERY_S = 0.2


async def bearer_of(server: RealApi, token: str) -> str | None:
    """Return the user name, or None if the token is rejected."""
    async with server.client_with(token) as api:
        try:
            review = await api.call("POST", _REVIEWS, {})
        except RefusedError as refusal:
            if refusal.status != _UNAUTHORIZED:
                raise
            return None
    return str(review["status"]["userInfo"]["username"])


async def await_bearer(server: RealApi, token: str, name: str | None) -> None:
    """Wait until the server authenticates a token as this user, or rejects it if `name` is None.

    A server caches valid tokens for some seconds, and trusts a new issuer after a moment.
    """
    async with asyncio.timeout(_LONGEST_S):
        while True:
            if await bearer_of(server, token) == name:
                return
            await asyncio.sleep(_LOOK_EVERY_S)
