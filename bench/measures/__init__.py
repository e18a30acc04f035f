"""Measurements: one module each, with a coroutine from a setting to figures by key."""
