"""`milo-discoveryd demo`: a Milo API with life in it, the daemon, and a subscriber, in one terminal."""
