"""Plain requests to a Kubernetes API server, and its error responses as BackendErrors."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn, Protocol, TypeVar

import msgspec

from milo_discoveryd.daemon_errors import BackendError
from milo_kube import retry_after
from milo_kube.http.errors import TransportError

TIMEOUT_S = 15.0
OVERLOADED = frozenset({429, 503})
"""Statuses that may refuse the daemon, or one object alone, such as by a webhook."""
UNSENT = frozenset({"dns", "connect", "tls", "credential"})
"""Causes for which no request was sent. Each other one may be of one object, such as a webhook that does not answer."""
T = TypeVar("T")


class ApiAnswer(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def body(self) -> bytes: ...


class KubernetesApi(Protocol):
    """Sends requests. Raises TransportError if there is no response."""

    async def get(self, path: str, query: Sequence[tuple[str, str]] = (), *, timeout_s: float) -> ApiAnswer: ...

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> ApiAnswer: ...

    async def delete(
        self, path: str, body: bytes, *, timeout_s: float, sending: Callable[[], None] | None = None
    ) -> ApiAnswer:
        """`sending` is called when the request is about to be sent; an error that it raises prevents that."""


def unanswered(error: TransportError) -> BackendError:
    """Return the error for a request that concerns one cluster, and has no response."""
    is_sent = error.cause not in UNSENT
    return BackendError(str(error), of_cluster=is_sent, may_be_of_issuer=is_sent and error.cause != "too_large")


def refuse(origin: str, answer: ApiAnswer, what: str, rule: str, *, of_cluster: bool = False) -> NoReturn:
    """Raise a BackendError for a failed request: `what` names it, `rule` is the RBAC rule that allows it. `of_cluster`:
    whether the response depends on what one cluster's owner writes.

    The message does not quote the response body, which may contain a secret.
    """
    status = answer.status
    if status == 401:
        raise BackendError(f"{origin} rejected the credential of the request to {what} (401): renew it")
    if status == 403:
        # Or an admission webhook did, of what one cluster's owner writes.
        problem = f"{origin} denied the request to {what} ({status}): add to the daemon's role: {rule}"
        raise BackendError(problem, of_cluster=of_cluster, may_be_of_issuer=of_cluster)
    if status == 404:
        raise BackendError(f"{origin} answered 404 to the request to {what}: an object, namespace or API is missing")
    raise BackendError(
        f"{origin} answered {status} to the request to {what}",
        retry_after_s=retry_after.stated(answer.headers, datetime.now(UTC)),
        of_cluster=of_cluster,
        may_be_of_issuer=of_cluster and (status in OVERLOADED or status >= 500),
    )


def read(origin: str, answer: ApiAnswer, decoder: msgspec.json.Decoder[T], *, of_cluster: bool = False) -> T:
    """Decode a response. `of_cluster`: whether it was made of what one cluster's owner writes."""
    try:
        return decoder.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        problem = f"{origin} answered {answer.status} with a body that is not a Kubernetes object"
        raise BackendError(problem, of_cluster=of_cluster) from None
