"""Logs, metrics, the audit, and the HTTP port."""
