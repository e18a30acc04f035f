"""The identity that an API server sees behind a bearer token."""

import asyncio

from tests.end_to_end.real.api import RefusedError
from tests.end_to_end.real.servers import RealApi

_REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_UNAUTHORIZED = 401
_LONGEST_S = 60
_LOOK_EVERY_S = 0.2


async def bearer_of(server: RealApi, token: str) -> str | None:
    """The user's name; None where the token is refused."""
    async with server.client_with(token) as api:
        try:
            told = await api.call("POST", _REVIEWS, {})
        except RefusedError as refusal:
            if refusal.status != _UNAUTHORIZED:
                raise
            return None
    return str(told["status"]["userInfo"]["username"])


async def until_bearer_is(server: RealApi, token: str, name: str | None) -> None:
    """A server remembers for some seconds that a token was good, and takes a moment to trust another issuer."""
    async with asyncio.timeout(_LONGEST_S):
        while True:
            if await bearer_of(server, token) == name:
                return
            await asyncio.sleep(_LOOK_EVERY_S)
