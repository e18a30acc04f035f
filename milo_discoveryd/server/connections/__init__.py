"""Accepting connections: addresses, TLS, peer credentials, and connection budgets."""
