"""Limit on calls in flight, for each owner of connections. Pure."""

from collections import Counter

from milo_discoveryd.server.calls.grpc_errors import TooManyCallsError

MAX_PER_OWNER = 100
"""Calls that are neither answered nor admitted as a stream, of one owner of authenticated connections."""
MAX_PER_LISTENER = 1000
"""The same at a listener that does not tell owners apart."""
RETRY_S = 1.0


class InFlightCalls:
    """The calls in flight at one listener."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    def slot(self, owner: str) -> "CallSlot":
        """Count one more call. Raises TooManyCallsError."""
        if self._calls[owner] >= (MAX_PER_OWNER if owner else MAX_PER_LISTENER):
            message = "too many calls in flight; wait for their answers before making more"
            raise TooManyCallsError("TOO_MANY_CALLS", "calls in flight", message, retry_after_s=RETRY_S)
        self._calls[owner] += 1
        return CallSlot(self._calls, owner)

    def __len__(self) -> int:
        return self._calls.total()


class CallSlot:
    """The place of one call among those in flight. A stream gives it up once the stream quota has admitted it."""

    def __init__(self, calls: Counter[str], owner: str) -> None:
        self._calls = calls
        self._owner = owner
        self._is_released = False

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._calls[self._owner] -= 1
            if not self._calls[self._owner]:
                del self._calls[self._owner]

    def __enter__(self) -> "CallSlot":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
