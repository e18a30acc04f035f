"""Discovery modes: from an upstream object to the cluster it stands for, or why it stands for none.

Another platform's package can add its own through the entry point group `milo_discoveryd.modes`. A mode is built once
from a `Setting`, and judges objects without I/O and without knowing the time.
"""
