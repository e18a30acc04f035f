"""Accepting connections: addresses, TLS, peer credentials, bearer tokens, and connection budgets."""
