"""How the daemon authenticates to API servers."""
