"""Handles SIGINT in all tests, as a pytest plugin.

A shell starts background commands with SIGINT ignored, which the processes of tests would inherit.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
