"""The behaviour, as data: scenarios, and the runner that plays them against a daemon process and an API server."""
