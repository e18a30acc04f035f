"""Public scenarios as data, and the runner that executes them against a daemon process and an API server."""
