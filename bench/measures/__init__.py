"""Measurements: each is a coroutine that takes a `Setting` and returns figures by key."""
