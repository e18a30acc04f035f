"""List and watch as a state machine: bytes, results, failures and the time in; requests and source events out.

Nothing here does I/O, waits or reads a clock: the driver, `milo_kube.list_watch`, does all three.
"""
