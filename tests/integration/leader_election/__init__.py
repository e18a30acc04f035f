"""Leader election against the sandbox."""
