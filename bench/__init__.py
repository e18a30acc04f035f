"""Benchmarks of the daemon as a process, on an API server in another process, beside other clients and servers."""
