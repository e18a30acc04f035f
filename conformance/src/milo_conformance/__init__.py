"""A conformance kit: it plays the daemon's side of the protocol, and judges what a subscriber makes of it."""

import os

# Refused handshakes are part of the cases, and no news.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
