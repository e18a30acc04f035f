"""Singleton work for the blocking client: claimed every few seconds, and run in a thread while it is granted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta

from milo_discovery import _convert
from milo_discovery._backoff import Backoff, BackoffPolicy
from milo_discovery._grpc_status import NOT_RETRYABLE
from milo_discovery._ownership import boottime
from milo_discovery._singleton_grants import HeldGrants, claimed_state
from milo_discovery.errors import DiscoveryError
from milo_discovery.model import SingletonGrants, SingletonState

log = logging.getLogger("milo_discovery.sync")

_END_LIMIT_S = 1.0
"""How long the daemon may take to note that the work has ended."""

SyncSingletonWork = Callable[[threading.Event], None]


Claim = Callable[[str, Mapping[str, SingletonState], float], SingletonGrants]
"""Claims work for a subscriber, within a time limit in seconds."""
End = Callable[[str, float], None]
"""Ends a subscription, within a time limit in seconds."""


class SyncSingleton:
    """Work that one replica does at a time: `run` calls it while the daemon grants it to this replica.

    The work is called in a thread of its own with an event, which is set when the grant ends, also while the daemon
    does not answer. The work then has to return: another replica begins when it has returned, or when the daemon stops
    waiting for it. Work that returns is not called again under the same grant; after an error, which is logged, it is.
    """

    def __init__(
        self,
        name: str,
        work: SyncSingletonWork,
        claim: Claim,
        end: End,
        *,
        backoff: BackoffPolicy,
        on_close: Callable[[SyncSingleton], None],
    ) -> None:
        self.name = name
        self._work = work
        self._claim_work = claim
        self._end_subscription = end
        self._backoff_policy = backoff
        self._on_close = on_close
        self._subscriber = _convert.new_subscriber()
        self._grants = HeldGrants()
        self._is_granted = False
        self._closed = threading.Event()
        self._running = threading.RLock()
        """Held by `run`, whose thread may call `close` in a signal handler."""
        self._ended = threading.Event()
        """Set when the work that was started last has to return."""
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Claim the work and run it until `close`; return after the work has. Raises errors that a retry cannot fix."""
        with self._running:
            try:
                while not self._closed.is_set():
                    self._claim()
                    self._settle()
                    self._closed.wait(self._grants.pause_s(boottime()))
                    self._settle()  # end work whose grant has expired before it is claimed again
            finally:
                self._finish()

    def close(self) -> None:
        """End the work and wait until it has returned, unless the work or the thread of `run` calls this.

        May be called from any thread.
        """
        self._closed.set()
        self._ended.set()
        self._on_close(self)
        if threading.current_thread() is not self._thread:
            with self._running:
                pass

    @property
    def _is_working(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _claim(self) -> None:
        """Claim the work. A failure leaves the last grant to expire."""
        asked_at = boottime()
        state = claimed_state(is_granted=self._is_granted, has_ended=not self._is_working)
        try:
            grants = self._claim_work(self._subscriber, {self.name: state}, self._grants.pause_s(asked_at))
        except NOT_RETRYABLE:
            raise
        except DiscoveryError as error:
            log.debug("singleton work %s could not be claimed: %s", self.name, error)
        else:
            self._grants.answered(grants, asked_at)

    def _settle(self) -> None:
        """Start the work if it is granted, or else signal it to end."""
        was_granted, self._is_granted = self._is_granted, self.name in self._grants.held(boottime())
        if not self._is_granted:
            self._ended.set()
        elif not was_granted and self._is_working:
            self._is_granted = False  # the work of the last grant still runs: start when it has ended
        elif not was_granted and not self._closed.is_set():
            self._ended = ended = threading.Event()
            name = f"milo-discovery singleton {self.name}"
            self._thread = threading.Thread(target=self._do, args=(ended,), name=name, daemon=True)
            self._thread.start()

    def _do(self, ended: threading.Event) -> None:
        """Call the work, again after an error, until it returns or its grant ends."""
        backoff = Backoff(self._backoff_policy)
        while not ended.is_set():
            began = time.monotonic()
            try:
                self._work(ended)
            except Exception:
                if ended.is_set():
                    log.exception("singleton work %s failed during its cleanup", self.name)
                    return
                delay = backoff.failed(ran=timedelta(seconds=time.monotonic() - began)).total_seconds()
                log.exception("singleton work %s failed; restarting it in %.1f s", self.name, delay)
                ended.wait(delay)
            else:
                return

    def _finish(self) -> None:
        """Wait for the work to return, and notify the daemon, which otherwise detects the end later."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(DiscoveryError):
            self._end_subscription(self._subscriber, _END_LIMIT_S)
