"""Monitors the daemon's event loop: a long step delays every subscriber and the responses to kubelet probes."""

from collections.abc import Callable

from milo_discoveryd.logger import log
from milo_kube.loop_watchdog import BlockedLoop, LoopWatchdog

BLOCKED_S = 2.0
"""Steps of the event loop that take at least this long are logged. In the manifests, the liveness probe times out after
five seconds."""


def watched_loop(observe: Callable[[float], None], *, blocked_s: float = BLOCKED_S) -> LoopWatchdog:
    """Return a context manager that reports each delay of the running event loop, and logs what blocks it."""
    return LoopWatchdog(observe, blocked=_blocked, was_blocked=_was_blocked, blocked_s=blocked_s)


def _blocked(found: BlockedLoop) -> None:
    log.warning("event loop is blocked", seconds=round(found.seconds, 1), task=found.task, stack=found.stack)


def _was_blocked(seconds: float) -> None:
    log.warning("event loop was blocked", seconds=round(seconds, 1))
