"""The command `milo-discovery`."""
