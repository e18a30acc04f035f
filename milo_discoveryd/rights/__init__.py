"""Authorization rules: which clusters a caller may see, and which kubeconfigs it may have. Pure."""
