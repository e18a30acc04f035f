"""Discovery modes: each maps an upstream object to a cluster, or to the reason why it is not engaged.

Other packages can add modes through the entry point group `milo_discoveryd.modes`. A mode is built once from a
`Setting`, and maps objects without I/O and without reading a clock.
"""
