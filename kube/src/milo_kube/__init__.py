"""Parts of a Kubernetes API client that the daemon and the client library's controllers share."""
