"""A sidecar that discovers Milo project control planes and streams them to operators over gRPC."""

__version__ = "0.1.0"

USER_AGENT = f"milo-discoveryd/{__version__}"
"""The value of the User-Agent header in requests to API servers."""
