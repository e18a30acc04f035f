"""What outlives the daemon: the clusters as last known, so that a restart without the source serves them, as stale.

No credential is ever among it.
"""
