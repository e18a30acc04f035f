"""Conformance kit for clients: a fake daemon, and the cases that test a subscriber against it."""

import os

# Cases provoke failed handshakes, which gRPC would log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
