"""Bearer tokens, shown to an API server, which says whose they are.

A token that nobody could review is nobody's: who shows it is told to come again, and never let through.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

import msgspec
import structlog

from milo_discoveryd.credentials import jwt
from milo_discoveryd.credentials.kubernetes_api import KubernetesApi, read, refuse
from milo_discoveryd.daemon_errors import BackendError, TransportError
from milo_discoveryd.identity.token_review_cache import ReviewResult, TokenRejected, TokenReviewCache, TokenUser

log = structlog.get_logger()

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
TIMEOUT_S = 5.0
AGAIN_AFTER_S = 1.0
"""Where the API server could not be asked, nobody asks it again sooner: callers are told at once."""
_AT_ONCE = 8
_RULE = "create on tokenreviews.authentication.k8s.io"


class TokenRejectedError(Exception):
    """The token is nobody's. The message says why, and holds nothing of it."""


class TokenReviewUnavailableError(Exception):
    """Whose the token is could not be found out. The message says no more than who is not known yet may know."""

    def __init__(self, message: str, *, retry_after_s: float, why: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.why = why or message
        """For who runs the daemon."""


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    groups: tuple[str, ...] = ()


class _Status(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: tuple[str, ...] = ()


class _Review(msgspec.Struct, frozen=True):
    status: _Status = _Status()


class TokenReviewer:
    def __init__(
        self,
        api: KubernetesApi,
        *,
        origin: str,
        audiences: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        verdicts: TokenReviewCache | None = None,
    ) -> None:
        """A token has to be for one of `audiences`; with none of them, for the API server itself."""
        self.origin = origin
        """Who is asked."""
        self._api = api
        self._audiences = tuple(audiences)
        self._clock = clock
        self._wall = wall
        self._verdicts = TokenReviewCache(clock()) if verdicts is None else verdicts
        self._asking: dict[bytes, asyncio.Lock] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._failure: tuple[TokenReviewUnavailableError, float] | None = None
        self._problem = ""
        """What was said last of why tokens can't be reviewed."""

    async def user(self, token: str) -> TokenUser:
        """Raises TokenRejectedError and TokenReviewUnavailableError."""
        ends = self._ends(token)
        digest = sha256(token.encode()).digest()
        verdict = self._verdicts.of(digest, self._clock())
        if verdict is None:
            verdict = await self._only_once(digest, token, ends)
        if isinstance(verdict, TokenRejected):
            raise TokenRejectedError(verdict.why)
        return verdict

    def _ends(self, token: str) -> float | None:
        """What need not be asked, since the token itself says that it is no good."""
        try:
            claims = jwt.claims(token)
        except ValueError as error:
            raise TokenRejectedError(f"it is no token of use: {error}") from None
        if not token.isascii() or len(token) > jwt.MAX_LENGTH:
            raise TokenRejectedError("it is no token of use: it has characters or a length that none has")
        if claims is None:
            return None
        if claims.exp is not None and claims.exp <= self._wall():
            raise TokenRejectedError("it has ended")
        if self._audiences and not claims.audiences & set(self._audiences):
            raise TokenRejectedError(self._wrong_audience)
        return claims.exp

    async def _only_once(self, digest: bytes, token: str, ends: float | None) -> ReviewResult:
        """However many show it at once."""
        lock = self._asking.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                verdict = self._verdicts.of(digest, self._clock())
                if verdict is None:
                    verdict = await self._ask(token, ends)
                    left_s = float("inf") if ends is None else ends - self._wall()
                    self._verdicts.keep(digest, verdict, self._clock(), left_s)
                return verdict
        finally:
            if not lock.locked():
                self._asking.pop(digest, None)

    async def _ask(self, token: str, ends: float | None) -> ReviewResult:
        now = self._clock()
        if self._failure is not None and now < self._failure[1]:
            raise self._failure[0]
        if (wait_s := self._verdicts.wait_s(now)) > 0:
            raise TokenReviewUnavailableError(
                "too many tokens are shown to have all of them reviewed", retry_after_s=wait_s
            )
        spec = {"token": token, **({"audiences": self._audiences} if self._audiences else {})}
        question = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        try:
            async with self._places:
                answer = await self._api.post(PATH, msgspec.json.encode(question), timeout_s=TIMEOUT_S)
            if answer.status != 201:
                refuse(self.origin, answer, "review a token", _RULE)
            verdict = self._verdict(read(self.origin, answer, _Review).status, ends)
        except (TransportError, BackendError) as error:
            again_s = max(AGAIN_AFTER_S, getattr(error, "retry_after_s", None) or 0.0)
            failure = TokenReviewUnavailableError(
                "whose your token is can't be found out at present", retry_after_s=again_s, why=str(error)
            )
            self._failure = failure, self._clock() + AGAIN_AFTER_S
            self._tell(failure.why)
            raise failure from None
        self._tell("")
        return verdict

    def _tell(self, problem: str) -> None:
        """Once, however many tokens are shown while it lasts."""
        if problem and problem != self._problem:
            log.warning("tokens not reviewed", problem=problem)
        elif self._problem and not problem:
            log.info("tokens reviewed again")
        self._problem = problem

    def _verdict(self, status: _Status, ends: float | None) -> ReviewResult:
        if not status.authenticated or not status.user.username:
            return TokenRejected("the API server does not know it")
        if self._audiences and not set(status.audiences) & set(self._audiences):
            # A server that names none has not looked at them: the token is for that server, and not to be shown us.
            return TokenRejected(self._wrong_audience)
        return TokenUser(name=status.user.username, groups=status.user.groups, until=ends)

    @property
    def _wrong_audience(self) -> str:
        return f"it is not for this daemon: its audience has to be {' or '.join(self._audiences)}"
