"""A conformance kit: it plays the daemon's side of the protocol, and judges what a subscriber makes of it."""

import os

# Cases provoke refused handshakes, so gRPC must not log them.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
