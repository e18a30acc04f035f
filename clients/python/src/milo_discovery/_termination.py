"""Handles SIGTERM like an interrupt (SIGINT)."""

import signal
import threading


def interrupt_on_sigterm() -> None:
    """Handle SIGTERM like Ctrl-C, unless the program has a handler of its own.

    The kernel ignores a signal to PID 1 of a container if that process has no handler for it. The kubelet would then
    kill the process after the grace period, before its clusters are handed over.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
