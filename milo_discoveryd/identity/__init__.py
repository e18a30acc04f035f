"""Authentication of callers: peer credentials, certificate names, and bearer tokens."""
