"""Limit on calls in flight, for each owner of connections. Pure."""

from collections import Counter
from collections.abc import Sequence

from milo_discoveryd.server.calls.grpc_errors import TooManyCallsError

MAX_PER_OWNER = 100
"""Maximum number of calls, neither answered nor admitted as a stream, per owner of authenticated connections."""
MAX_PER_LISTENER = 1000
"""Maximum number of such calls in total at a listener that does not distinguish owners of connections."""
MAX_LARGE = 100
"""Maximum number of calls with a large request at a listener that does not distinguish owners of connections, because
requests are kept in memory for the duration of the call."""
LARGE_BYTES = 4096
RETRY_S = 1.0
_ANYONE = ""
_LARGE = "large"


class InFlightCalls:
    """The calls in flight at one listener."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()

    def slot(self, owners: Sequence[str], request_bytes: int = 0) -> "CallSlot":
        """Count a call for each of its owners, so that a certificate with more names gets no more calls.

        Raises TooManyCallsError.
        """
        limits = dict.fromkeys(owners, MAX_PER_OWNER) or {_ANYONE: MAX_PER_LISTENER}
        if not owners and request_bytes > LARGE_BYTES:
            limits[_LARGE] = MAX_LARGE
        keys = tuple(limits)
        if any(self._calls[key] >= limit for key, limit in limits.items()):
            message = "too many calls in flight; wait for their responses before sending more"
            raise TooManyCallsError("TOO_MANY_CALLS", "calls in flight", message, retry_after_s=RETRY_S)
        self._calls.update(keys)
        return CallSlot(self._calls, keys)

    def __len__(self) -> int:
        """Return the number of owners with calls in flight."""
        return len(self._calls)


class CallSlot:
    """One call's slot among the calls in flight. A stream releases its slot once the stream quota has admitted it."""

    def __init__(self, calls: Counter[str], keys: Sequence[str]) -> None:
        self._calls = calls
        self._keys = keys
        self._is_released = False

    def release(self) -> None:
        if not self._is_released:
            self._is_released = True
            for key in self._keys:
                self._calls[key] -= 1
                if not self._calls[key]:
                    del self._calls[key]

    def __enter__(self) -> "CallSlot":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
