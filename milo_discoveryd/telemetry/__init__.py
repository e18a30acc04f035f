"""Logs, metrics, traces, the audit log, and the HTTP port with the status page."""
