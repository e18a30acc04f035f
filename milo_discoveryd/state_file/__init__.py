"""The state file: the clusters as last known, so that a restart without the source serves them as stale.

It contains no credentials.
"""
