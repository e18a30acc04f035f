"""Publishes the engaged clusters as objects in a Kubernetes API, for tools that read them there."""
