"""Who calls, as far as it was proved to us."""
