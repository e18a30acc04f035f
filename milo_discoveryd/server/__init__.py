"""The gRPC side: a short method for each call, conversion, errors, and the listeners."""
