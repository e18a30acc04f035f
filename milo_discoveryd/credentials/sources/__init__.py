"""Sources of the credentials that the daemon hands out."""
