"""Issuers of the credentials that the daemon issues."""
