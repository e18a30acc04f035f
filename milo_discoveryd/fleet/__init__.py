"""The fleet: the clusters of all sources, and the commits of their changes to the change log."""
