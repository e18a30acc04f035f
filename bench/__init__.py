"""Measures the daemon from outside: as a process, on an API server that is another process, next to its peers."""
