"""A simulated token API of an infrastructure cluster.

Each project has a Secret and tokens bound to it, which are valid while the Secret exists. All tokens are recorded for
the validators.
"""

import asyncio
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Literal, TypeAlias

import msgspec

from milo_discoveryd.credentials.issuers.token_request import CLUSTER_LABEL
from milo_kube.api_request import Answer
from milo_kube.http.errors import TransportError
from tests.end_to_end.process.issued_credentials import Token
from tests.simulation.seeded.request_faults import Answered, Lost, status, text

SECRETS = "/api/v1/namespaces/milo/secrets"
TOKENS = "/api/v1/namespaces/milo/serviceaccounts/operator/token"
Lifetime: TypeAlias = Literal["as asked", "ended", "for ever"]


@dataclass(frozen=True)
class Slow:
    """A correct response, after a delay of up to `most_s`."""

    most_s: float


@dataclass(frozen=True)
class ResponseLost:
    """A request that takes effect, and whose response is lost."""


@dataclass(frozen=True)
class IssuedFor:
    """A token with a different lifetime than requested."""

    lifetime: Lifetime


@dataclass(frozen=True)
class TokenTrouble:
    row: str
    name: str
    comes: Lost | Answered | Slow | ResponseLost | IssuedFor


TOKEN_FAULTS = (
    TokenTrouble("F49", "slow tokens", Slow(14.0)),
    TokenTrouble("F49", "no answer for tokens", Lost("timeout", late=True)),
    TokenTrouble("F49", "an answer for tokens that is lost", ResponseLost()),
    TokenTrouble("F50", "no tokens: refused", Lost("connect")),
    TokenTrouble("F50", "no tokens: cut", Lost("closed")),
    TokenTrouble("F50", "no tokens: unauthorized", Answered(status(401, "Unauthorized"))),
    TokenTrouble("F50", "no tokens: forbidden", Answered(status(403, "Forbidden"))),
    TokenTrouble("F50", "no tokens: too many", Answered(status(429, "TooManyRequests", **{"Retry-After": "3"}))),
    TokenTrouble("F50", "no tokens: internal error", Answered(status(500, "InternalError"))),
    TokenTrouble("F51", "an expired token", IssuedFor("ended")),
    TokenTrouble("F51", "a token that does not expire", IssuedFor("for ever")),
    TokenTrouble("F52", "junk for a token", Answered(text(201, b'{"status":{"token":"'))),
)
WITHDRAWN = ("F54", "the Secret that tokens are bound to is deleted")


class _Reference(msgspec.Struct, frozen=True):
    name: str
    uid: str


class _Spec(msgspec.Struct, frozen=True):
    expiration: float = msgspec.field(name="expirationSeconds")
    bound: _Reference = msgspec.field(name="boundObjectRef")


class _Asked(msgspec.Struct, frozen=True):
    spec: _Spec


class _Preconditions(msgspec.Struct, frozen=True):
    uid: str


class _DeleteOptions(msgspec.Struct, frozen=True):
    preconditions: _Preconditions


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    labels: dict[str, str]


class _Secret(msgspec.Struct, frozen=True):
    metadata: _Metadata


@dataclass
class Bound:
    """A Secret and the tokens that are bound to it."""

    uid: str
    labels: dict[str, str]
    created_at: float
    tokens: list[Token]

    @property
    def of(self) -> str:
        return self.labels[CLUSTER_LABEL]


class TokenApi:
    """The token API; `fault_rate` is the share of requests with a fault."""

    def __init__(
        self, random: Random, inject: Callable[[str, str], None], longest_s: float, wall: Callable[[], float]
    ) -> None:
        """`longest_s` limits the lifetime of tokens; `wall` is the server's own clock."""
        self.fault_rate = 0.0
        self.only: TokenTrouble | None = None
        """The one fault to inject, in every request."""
        self.down_until = 0.0
        self.pause_s = 0.0
        """The delay of each response."""
        self.wall = wall
        self.requests = 0
        self.made: dict[str, Token] = {}
        self._bound: dict[str, Bound] = {}
        self._secrets = 0
        self._random = random
        self._inject = inject
        self._longest_s = longest_s
        self._loop = asyncio.get_running_loop()

    def has_secret_of(self, mark: str) -> bool:
        return any(bound.of == mark for bound in self._bound.values())

    def withdraw(self) -> None:
        """Delete one of the Secrets, as a person might."""
        if self._bound:
            self._inject(*WITHDRAWN)
            del self._bound[self._random.choice([*self._bound])]

    # --- requests ---

    async def get(self, path: str, query: Iterable[tuple[str, str]] = (), *, timeout_s: float) -> Answer:
        assert path == SECRETS, path
        return await self._asked(lambda _: self._listed(dict(query)["labelSelector"]), timeout_s)

    async def delete(
        self, path: str, body: bytes, *, timeout_s: float, sending: Callable[[], None] | None = None
    ) -> Answer:
        assert sending is None
        uid = msgspec.json.decode(body, type=_DeleteOptions).preconditions.uid
        return await self._asked(lambda _: self._deleted(path, uid), timeout_s)

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer:
        if path == SECRETS:
            return await self._asked(lambda _: self._made_secret(body), timeout_s)
        assert path == TOKENS, path
        return await self._asked(lambda lifetime: self._made_token(body, lifetime), timeout_s)

    async def _asked(self, do: Callable[[Lifetime], Answer], timeout_s: float) -> Answer:
        self.requests += 1
        if self.pause_s or self._random.random() < 0.3:
            await asyncio.sleep(self.pause_s or 0.05 * self._random.random())
        if self._loop.time() < self.down_until:
            raise TransportError("connect", "the server is down")
        if self.only is None and (not self.fault_rate or self._random.random() >= self.fault_rate):
            return do("as asked")
        fault = self.only or self._random.choice(TOKEN_FAULTS)
        self._inject(fault.row, fault.name)
        match fault.comes:
            case Answered(make):
                return make(self._random)
            case IssuedFor(lifetime):
                return do(lifetime)
            case Slow(most_s):
                await asyncio.sleep(self._random.uniform(0.5, most_s))
                return do("as asked")
            case ResponseLost():
                do("as asked")
                await asyncio.sleep(timeout_s)
                raise TransportError("timeout", fault.name)
            case Lost(cause, late):
                await asyncio.sleep(timeout_s if late else 0.0)
                raise TransportError(cause, fault.name)

    # --- responses ---

    def _listed(self, selector: str) -> Answer:
        wanted = [part.partition("=") for part in selector.split(",")]
        items = [
            {"metadata": self._metadata(name)}
            for name, bound in self._bound.items()
            if all(key in bound.labels and (not equals or bound.labels[key] == value) for key, equals, value in wanted)
        ]
        return _told(200, {"items": items})

    def _metadata(self, name: str) -> dict[str, object]:
        bound = self._bound[name]
        return {"name": name, "uid": bound.uid, "creationTimestamp": datetime.fromtimestamp(bound.created_at, UTC)}

    def _deleted(self, path: str, uid: str) -> Answer:
        name = path.removeprefix(f"{SECRETS}/")
        bound = self._bound.get(name)
        if bound is None:
            return _not_found(name)
        if bound.uid != uid:
            return status(409, "Conflict")(self._random)
        del self._bound[name]
        for token in bound.tokens:
            token.is_revoked = True
        return _told(200, {})

    def _made_secret(self, body: bytes) -> Answer:
        metadata = msgspec.json.decode(body, type=_Secret).metadata
        if metadata.name in self._bound:
            return status(409, "AlreadyExists")(self._random)
        self._secrets += 1
        self._bound[metadata.name] = Bound(f"secret-{self._secrets}", metadata.labels, self.wall(), [])
        return _told(201, {"metadata": self._metadata(metadata.name)})

    def _made_token(self, body: bytes, lifetime: Lifetime) -> Answer:
        spec = msgspec.json.decode(body, type=_Asked).spec
        bound = self._bound.get(spec.bound.name)
        if bound is None:
            return _not_found(spec.bound.name)
        if bound.uid != spec.bound.uid:
            return status(409, "Conflict")(self._random)
        life_s = {"as asked": min(spec.expiration, self._longest_s), "ended": -1.0, "for ever": 1e8}[lifetime]
        now = self.wall()
        token = Token(_jwt(now, now + life_s, len(self.made)), bound.of, float(int(now + life_s)))
        self.made[token.text] = token
        bound.tokens.append(token)
        ends = datetime.fromtimestamp(token.ends_at, UTC)
        return _told(201, {"status": {"token": token.text, "expirationTimestamp": ends}})


def _jwt(now: float, ends_at: float, number: int) -> str:
    account = "system:serviceaccount:milo:operator"
    claims = {"iat": int(now), "nbf": int(now), "exp": int(ends_at), "sub": account, "jti": str(number)}
    parts = ({"alg": "none"}, claims)
    encoded = [urlsafe_b64encode(msgspec.json.encode(part)).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, f"token-{number}"])


def _told(code: int, body: object) -> Answer:
    return Answer(code, {}, msgspec.json.encode(body))


def _not_found(secret: str) -> Answer:
    details = {"kind": "secrets", "name": secret}
    return _told(404, {"kind": "Status", "code": 404, "reason": "NotFound", "details": details})
