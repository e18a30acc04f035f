"""Measurements, one module each: a coroutine takes a `Setting` and returns figures by key."""
