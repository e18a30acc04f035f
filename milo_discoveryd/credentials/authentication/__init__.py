"""Authentication of the daemon to API servers: from a kubeconfig or the pod's service account to an `Upstream`."""
