"""The kinds of sources of clusters: a module for each, which says what it follows and what an object means.

Other packages can add kinds through the entry point group `milo_discoveryd.sources`. Kinds have no I/O and no clock.
"""
