"""Drivers that follow the sources (API servers and files), requests to API servers, and connectivity probes."""
