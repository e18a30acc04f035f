"""The gRPC server: `connections` accepts and authenticates connections, `calls` implements the RPCs."""
