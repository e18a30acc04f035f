"""What the sources need of the infrastructure cluster's API, and what its refusals mean to them."""

from collections.abc import Mapping
from typing import NoReturn, Protocol, TypeVar

import msgspec

from milo_discoveryd.daemon_errors import BackendError

TIMEOUT_S = 15.0
T = TypeVar("T")


class Answer(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def body(self) -> bytes: ...


class KubernetesApi(Protocol):
    """Raises TransportError where there is no answer."""

    async def get(self, path: str, *, timeout_s: float) -> Answer: ...

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Answer: ...

    async def delete(self, path: str, *, timeout_s: float) -> Answer: ...


def refuse(origin: str, answer: Answer, what: str, rule: str) -> NoReturn:
    """`what` was asked for; `rule` is the RBAC rule that allows it. Nothing of the answer's text is repeated."""
    status = answer.status
    if status in (401, 403):
        raise BackendError(f"{origin} does not let us {what} ({status}): its role needs {rule}")
    if status == 404:
        raise BackendError(f"{origin} has nothing there to {what} (404)")
    wait = answer.headers.get("Retry-After", "")
    raise BackendError(
        f"{origin} answered {status} when asked to {what}",
        retry_after_s=float(wait) if wait.isascii() and wait.isdigit() and len(wait) < 6 else None,
    )


def read(origin: str, answer: Answer, form: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BackendError(f"{origin} answered {answer.status}, and not as a Kubernetes API server does") from None
