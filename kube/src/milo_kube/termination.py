"""Handles SIGTERM like an interrupt (SIGINT)."""

import signal
import threading
from types import FrameType


def interrupt_on_sigterm() -> None:
    """Handle SIGTERM like Ctrl-C, unless the program has a handler of its own.

    The kernel ignores a signal to PID 1 of a container if that process has no handler for it. The kubelet would then
    kill the process after the grace period, before its clusters are handed over.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell script started the program with `&`, so that Ctrl-C does not end it. Python and asyncio install no
        # handler for an ignored SIGINT.
        signal.default_int_handler(number, frame)
    signal.raise_signal(signal.SIGINT)
