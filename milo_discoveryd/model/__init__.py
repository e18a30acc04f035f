"""Value types that all packages share: frozen, and without I/O."""
