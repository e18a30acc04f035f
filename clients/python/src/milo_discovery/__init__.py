"""Follow Milo project control planes through milo-discoveryd."""
