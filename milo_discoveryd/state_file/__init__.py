"""The state file: the clusters as last known, for a daemon that starts while the source is unreachable.

It contains no credentials.
"""
