"""Watches the event loop of the daemon: what takes long there delays every subscriber, and probes of the kubelet."""

from collections.abc import Callable

from milo_discoveryd.logger import log
from milo_kube.loop_watchdog import BlockedLoop, LoopWatchdog

BLOCKED_S = 2.0
"""A step of the loop that takes as long is logged. The kubelet's probe fails after five seconds."""


def watched_loop(observe: Callable[[float], None], *, blocked_s: float = BLOCKED_S) -> LoopWatchdog:
    """Return a context manager that reports each delay of the running event loop, and logs what blocks it."""
    return LoopWatchdog(observe, blocked=_blocked, was_blocked=_was_blocked, blocked_s=blocked_s)


def _blocked(found: BlockedLoop) -> None:
    log.warning("event loop is blocked", seconds=round(found.seconds, 1), task=found.task, stack=found.stack)


def _was_blocked(seconds: float) -> None:
    log.warning("event loop was blocked", seconds=round(seconds, 1))
