"""What is handed out: credentials kept fresh on leases, and the kubeconfigs they are put into."""
