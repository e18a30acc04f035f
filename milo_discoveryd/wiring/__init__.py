"""Turns settings into the objects that the daemon runs."""
