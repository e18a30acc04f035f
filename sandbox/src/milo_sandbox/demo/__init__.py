"""`milo-discoveryd demo`: a sandbox with changing projects, the daemon and a subscriber, in one terminal."""
