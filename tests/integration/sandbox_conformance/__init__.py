"""Recorded responses of real API servers, which the sandbox must reproduce.

A conversation is a function that sends requests. A transcript has requests and responses, normalized so that two
servers with the same behavior have the same one. `./dev real record` renews the transcripts of the real servers.
"""
