"""The HTTP connection to a Kubernetes-style API server, and the driver that runs a reflector against it."""
