"""The gRPC server: `connections` accepts and authenticates connections, `calls` answers what arrives on them."""
