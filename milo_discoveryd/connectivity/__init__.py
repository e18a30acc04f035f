"""Connectivity probes of the engaged clusters' API servers: the schedule (pure) and the task that runs it."""
