"""Kubeconfigs for engaged clusters: leases that renew credentials in time, and the kubeconfigs made from them."""
