"""List + watch as an explicit machine: bytes, answers, failures and the time in; requests and findings out.

Nothing here does I/O, waits, or knows the time: the driver in `watchers` does all three.
"""
