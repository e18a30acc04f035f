"""Discovery modes: from an upstream object to the cluster it stands for, or why it stands for none.

A mode is found through the entry point group `milo_discoveryd.modes`, so that another platform's package can add its
own. It is built once from a `Setting`, and judges objects without I/O and without knowing the time.
"""
