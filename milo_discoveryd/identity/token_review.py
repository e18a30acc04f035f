"""Authentication of bearer tokens: an API server reviews them.

A token that can't be reviewed is never accepted; its caller receives a retryable error.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from hashlib import sha256

import msgspec

from milo_discoveryd.credentials import jwt
from milo_discoveryd.credentials.kubernetes_api import KubernetesApi, read, refuse
from milo_discoveryd.daemon_errors import BackendError
from milo_discoveryd.identity.review_budget import UNKNOWN_ORIGIN, ReviewBudget, ReviewsInFlight, TokenOrigin
from milo_discoveryd.identity.token_review_cache import (
    ACCEPTED_S,
    ReviewResult,
    TokenRejected,
    TokenReviewCache,
    TokenUser,
)
from milo_discoveryd.logger import log
from milo_kube import retry_after
from milo_kube.http.errors import TransportError

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
TIMEOUT_S = 5.0
RETRY_AFTER_S = 1.0
"""After a failed request to the API server, no review is sent for the same caller for this time, and its calls that
need one fail at once."""
_REQUIRED_RULE = "create on tokenreviews.authentication.k8s.io"


class TokenRejectedError(Exception):
    """The token is not valid. The message says why, and contains no part of the token."""


class TokenReviewUnavailableError(Exception):
    """The token could not be reviewed. The message is for the caller, which is not authenticated yet."""

    def __init__(self, message: str, *, retry_after_s: float, why: str = "") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.why = why or message
        """The cause, for the operator of the daemon."""

    def copy(self) -> "TokenReviewUnavailableError":
        """Return what is kept, or raised again: an exception keeps the frames that it passes, with their tokens."""
        return TokenReviewUnavailableError(str(self), retry_after_s=self.retry_after_s, why=self.why)


class TokenReviewLimitError(TokenReviewUnavailableError):
    """The rate limit for token reviews was reached, for the caller or in total."""


class _ReviewedUser(msgspec.Struct, frozen=True):
    username: str = ""
    groups: tuple[str, ...] = ()


class _TokenReviewStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _ReviewedUser = _ReviewedUser()
    audiences: tuple[str, ...] = ()


class _TokenReview(msgspec.Struct, frozen=True):
    status: _TokenReviewStatus = _TokenReviewStatus()


_TOKEN_REVIEW = msgspec.json.Decoder(_TokenReview)


class TokenReviewer:
    def __init__(
        self,
        api: KubernetesApi,
        *,
        origin: str,
        audiences: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        budget: ReviewBudget | None = None,
    ) -> None:
        """`audiences`: a token must be for one of them or, if there are none, for the API server itself."""
        self.origin = origin
        """The path of the API server's kubeconfig, or "in-cluster", for messages."""
        self._api = api
        self._audiences = tuple(audiences)
        self._clock = clock
        self._wall = wall
        self._cache = TokenReviewCache()
        self._budget = ReviewBudget(clock()) if budget is None else budget
        self._in_flight: dict[bytes, asyncio.Lock] = {}
        self._reviews: dict[bool, ReviewsInFlight[TokenReviewUnavailableError]] = {
            was_accepted: ReviewsInFlight() for was_accepted in (True, False)
        }
        self._logged_problem = ""

    async def authenticate(
        self,
        token: str,
        origin: TokenOrigin = UNKNOWN_ORIGIN,
        *,
        max_age_s: float = ACCEPTED_S,
    ) -> TokenUser:
        """Return the token's user, according to a review that is no older than `max_age_s`.

        Raises TokenRejectedError or TokenReviewUnavailableError.
        """
        expires_at = self._precheck(token)
        digest = sha256(token.encode()).digest()
        result = self._cache.get(digest, self._clock(), max_age_s)
        if result is None:
            result = await self._review_once(digest, token, expires_at, origin, max_age_s)
        if isinstance(result, TokenRejected):
            raise TokenRejectedError(result.why)
        return result

    def _precheck(self, token: str) -> float | None:
        """Reject tokens whose claims show that they cannot be valid; return the expiry, if the token has one."""
        try:
            claims = jwt.claims(token)
        except ValueError as error:
            raise TokenRejectedError(f"malformed token: {error}") from None
        if not token.isascii() or len(token) > jwt.MAX_LENGTH:
            raise TokenRejectedError(f"malformed token: not ASCII, or longer than {jwt.MAX_LENGTH} characters")
        if claims is None:
            return None
        if claims.exp is not None and claims.exp <= self._wall():
            raise TokenRejectedError("the token has expired")
        if self._audiences and not claims.audiences & set(self._audiences):
            raise TokenRejectedError(self._wrong_audience)
        return claims.exp

    async def _review_once(
        self, digest: bytes, token: str, expires_at: float | None, origin: TokenOrigin, max_age_s: float
    ) -> ReviewResult:
        """Review the token; concurrent calls with the same token share one review."""
        lock = self._in_flight.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                result = self._cache.get(digest, self._clock(), max_age_s)
                if result is None:
                    was_accepted = self._cache.was_accepted(digest)
                    reviews = self._reviews[was_accepted]
                    if (failure := reviews.recent_failure(origin, self._clock())) is not None:
                        raise failure.copy()
                    if not reviews.has_room(origin):
                        raise TokenReviewLimitError("too many token reviews in flight", retry_after_s=RETRY_AFTER_S)
                    wait_s = self._budget.charge_review(origin, self._clock(), was_accepted=was_accepted)
                    if wait_s:
                        raise TokenReviewLimitError("token review rate limit reached", retry_after_s=wait_s)
                    reviews.count(origin, 1)
                    try:
                        result = await self._review(token, expires_at)
                    except TokenReviewUnavailableError as error:
                        reviews.failed(origin, error.copy(), self._clock() + RETRY_AFTER_S)
                        raise
                    finally:
                        reviews.count(origin, -1)
                    left_s = float("inf") if expires_at is None else expires_at - self._wall()
                    self._cache.put(digest, result, self._clock(), left_s)
                    if isinstance(result, TokenRejected):
                        self._budget.rejected(origin, self._clock())
                return result
        finally:
            if not lock.locked():
                self._in_flight.pop(digest, None)

    async def _review(self, token: str, expires_at: float | None) -> ReviewResult:
        spec = {"token": token, **({"audiences": self._audiences} if self._audiences else {})}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        try:
            answer = await self._api.post(PATH, msgspec.json.encode(request), timeout_s=TIMEOUT_S)
            if answer.status != 201:
                refuse(self.origin, answer, "review a token", _REQUIRED_RULE)
            result = self._result(read(self.origin, answer, _TOKEN_REVIEW).status, expires_at)
        except (TransportError, BackendError) as error:
            stated_s = getattr(error, "retry_after_s", None) or 0.0
            retry_after_s = max(RETRY_AFTER_S, min(stated_s, retry_after.LONGEST_S))
            failure = TokenReviewUnavailableError(
                "tokens can't be reviewed at present; retry", retry_after_s=retry_after_s, why=str(error)
            )
            self._log_problem(failure.why)
            raise failure from None
        self._log_problem("")
        return result

    def _log_problem(self, problem: str) -> None:
        """Log the problem only when it changes, regardless of how many tokens it affects."""
        if problem and problem != self._logged_problem:
            log.warning("token reviews failing", problem=problem)
        elif self._logged_problem and not problem:
            log.info("token reviews recovered")
        self._logged_problem = problem

    def _result(self, status: _TokenReviewStatus, expires_at: float | None) -> ReviewResult:
        if not status.authenticated or not status.user.username:
            return TokenRejected("the API server rejected the token")
        if self._audiences and not set(status.audiences) & set(self._audiences):
            # A server that returns no audiences did not check them: the token may be meant for that server alone.
            return TokenRejected(self._wrong_audience)
        return TokenUser(name=status.user.username, groups=status.user.groups, expires_at=expires_at)

    @property
    def _wrong_audience(self) -> str:
        return f"wrong audience: the token must be for {' or '.join(self._audiences)}"
