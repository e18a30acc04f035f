"""The kinds of sources of clusters: a module for each, which defines what a source follows and what its objects mean.

Other packages can add kinds through the entry point group `milo_discoveryd.sources`. Kinds have no I/O and no clock.
"""
