"""Real API servers for tests: etcd, Milo's API server and a kube-apiserver, built here and run on loopback."""
