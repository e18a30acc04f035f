"""Logs, audit, metrics, traces and the status page."""
