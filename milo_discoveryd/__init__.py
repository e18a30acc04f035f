"""A sidecar that discovers Milo project control planes and streams them to operators over gRPC."""

__version__ = "0.1.0"
