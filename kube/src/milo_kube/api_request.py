"""A request to an API server, with its path and headers, and the response. Pure."""

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol
from urllib.parse import quote, urlencode

import msgspec

from milo_kube.act_as import ActAs
from milo_kube.credential import Credential

JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

# Names can come from objects that tenants write. A server or proxy that normalizes "..", "%2e%2e", "?" or "#" would
# apply the request, and its credential, to another path.
_NO_DOTS = r"(?!\.{1,2}(?:/|\Z))"
_PLAIN = "[A-Za-z0-9._~:@-]"
# Not encoded control characters, nor any of #%/;?\ and of those that are never encoded, such as ".".
_ENCODED = r"%(?:2[01246-9A-C]|3[CDE]|5[BDE]|60|7[BCD]|[89A-F][0-9A-F])"
_SEGMENT = re.compile(f"{_NO_DOTS}{_PLAIN}+")
_ENCODED_SEGMENT = re.compile(f"{_NO_DOTS}(?:{_PLAIN}|{_ENCODED})+")
_PATH = re.compile(rf"(?:/{_ENCODED_SEGMENT.pattern})+/?|/")


def is_segment(name: str) -> bool:
    """Return whether a name is safe as one segment of a path as it is."""
    return _SEGMENT.fullmatch(name) is not None


def segment(name: str) -> str:
    """Return a name as one segment of a path: that of a role may have a space. Raises ValueError if it is not safe."""
    encoded = name if is_segment(name) else quote(name, safe=":@", errors="replace")
    if not _ENCODED_SEGMENT.fullmatch(encoded):
        raise ValueError(
            f"no request is sent for the name {name!r}: one that is empty, '.' or '..', or has a control character or "
            r"any of #%/;?\, could lead to another path"
        )
    return encoded


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """The address and trust root of an API server, and the credential to use there now."""

    server: str
    """scheme://host[:port][/prefix], without a trailing slash."""
    authorities: bytes | None = None
    """PEM; None stands for the system's CAs."""
    tls_server_name: str | None = None
    credential: Credential = Credential()
    act_as: ActAs | None = None
    """The user impersonated by the request."""


def _permit() -> None:
    """Permit the request."""


class ApiRequest(msgspec.Struct, frozen=True):
    """A request, which can be sent again with another credential. Raises ValueError for an unsafe path."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    content_type: str = JSON
    accept: str = JSON
    encoding: str = "gzip"
    sending: Callable[[], None] = _permit
    """Called when the request is about to be sent, each time: after the waits for its credential and its connection. An
    error that it raises prevents that."""

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"refused to send a request to the unsafe path {self.path!r}")

    def url(self, server: str) -> str:
        return f"{server}{self.path}{f'?{urlencode(self.query, quote_via=quote)}' if self.query else ''}"

    def headers(self, access: Access) -> dict[str, str | tuple[str, ...]]:
        headers: dict[str, str | tuple[str, ...]] = {"Accept": self.accept, "Accept-Encoding": self.encoding}
        if self.body is not None:
            headers["Content-Type"] = self.content_type
        if access.credential.token is not None:
            headers["Authorization"] = f"Bearer {access.credential.token.reveal()}"
        if access.act_as is not None:
            for name, value in access.act_as.headers():
                headers[name] = (*headers.get(name, ()), value)
        return headers


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream(Protocol):
    """A response whose body is read while it arrives."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces of any size until its end. Raises TransportError if the connection breaks."""

    async def read_error(self, limit: int) -> bytes:
        """Return the beginning of the body of an error response."""
