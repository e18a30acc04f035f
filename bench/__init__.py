"""Benchmarks of the daemon beside other clients and servers: mostly as a process, with an API server in another one."""
