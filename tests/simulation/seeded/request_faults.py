"""Faults of single requests, each with the number of its row in docs/reviewers/reliability.md."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

import msgspec

from milo_kube.api_request import Answer
from milo_kube.http.errors import TransportCause

Kind = Literal["list", "open", "look"]


@dataclass(frozen=True)
class Lost:
    """No response: an immediate failure, or a timeout."""

    cause: TransportCause
    late: bool = False


@dataclass(frozen=True)
class Answered:
    make: Callable[[Random], Answer]


@dataclass(frozen=True)
class Lie:
    """A plausible but wrong response, made by the simulated API server."""

    what: Literal["empty", "third", "partial", "unversioned", "mute", "ends at once", "no end mark", "lagging"]


@dataclass(frozen=True)
class RequestFault:
    row: str
    name: str
    comes: Lost | Answered | Lie
    kinds: tuple[Kind, ...] = ("list", "open", "look")


def status(code: int, reason: str, **headers: str) -> Callable[[Random], Answer]:
    body = msgspec.json.encode({"kind": "Status", "code": code, "reason": reason, "message": reason})
    return lambda random: Answer(code, headers, body)


def text(code: int, body: bytes, **headers: str) -> Callable[[Random], Answer]:
    return lambda random: Answer(code, headers, body)


RETRY_AFTER = ("1", "3", "0", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "99999999999")


def _too_many(random: Random) -> Answer:
    return status(429, "TooManyRequests", **{"Retry-After": random.choice(RETRY_AFTER)})(random)


_BROKEN = (b"", b"{}", b"<html>", b'{"metadata":{"resourceVersion":"7"},"items":[{"meta', b"\xff\xfe{", b"[" * 3000)


def _junk(random: Random) -> Answer:
    return Answer(200, {}, random.choice(_BROKEN))


EMPTY_LIST = RequestFault("F20", "an empty list", Lie("empty"), ("list", "open"))
THIRD_OF_LIST = RequestFault("F20", "a third of the list", Lie("third"), ("list", "open"))
REQUEST_FAULTS = (
    RequestFault("F1", "refused", Lost("connect")),
    RequestFault("F2", "cut", Lost("closed")),
    RequestFault("F6", "no answer", Lost("timeout", late=True)),
    RequestFault("F7", "no such host", Lost("dns")),
    RequestFault("F9", "wrong certificate", Lost("tls")),
    RequestFault("F10", "a future version", Answered(status(504, "Timeout")), ("open",)),
    RequestFault("F11", "expired", Answered(status(410, "Expired")), ("list", "open")),
    RequestFault("F15", "too many requests", Answered(_too_many)),
    RequestFault("F15", "too many, as text", Answered(text(429, b"Too many requests", **{"Retry-After": "1"}))),
    RequestFault("F16", "internal error", Answered(status(500, "InternalError"))),
    RequestFault("F16", "bad gateway", Answered(text(502, b"<html><h1>502 Bad Gateway</h1></html>"))),
    RequestFault("F16", "just started", Answered(text(503, b"not all paths installed", **{"Retry-After": "5"}))),
    RequestFault("F17", "unauthorized", Answered(status(401, "Unauthorized"))),
    RequestFault("F18", "forbidden", Answered(status(403, "Forbidden"))),
    RequestFault("F18", "not found", Answered(status(404, "NotFound"))),
    RequestFault("F19", "no such resource", Answered(text(404, b"404 page not found"))),
    EMPTY_LIST,
    RequestFault("F20", "an incomplete list", Lie("partial"), ("list", "open")),
    RequestFault("F23", "a list without a version", Lie("unversioned"), ("list",)),
    RequestFault("F28", "junk", Answered(_junk)),
    RequestFault("F31", "no streaming lists", Answered(status(422, "Invalid")), ("open",)),
    RequestFault("F31", "a list without an end", Lie("no end mark"), ("open",)),
    RequestFault("F32", "a watch that ends at once", Lie("ends at once"), ("open",)),
    RequestFault("F68", "a list of a lagging replica", Lie("lagging"), ("list", "open")),
    RequestFault("F72", "a read from a lagging replica", Lie("lagging"), ("look",)),
    RequestFault("F4", "a mute watch", Lie("mute"), ("open",)),
)
BY_KIND: dict[Kind, tuple[RequestFault, ...]] = {
    kind: tuple(fault for fault in REQUEST_FAULTS if kind in fault.kinds) for kind in ("list", "open", "look")
}
