"""Issuers of credentials, which the daemon issues to callers or uses itself."""
