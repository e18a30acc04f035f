"""Kubeconfigs for engaged clusters: leases that renew credentials in time, and the documents made of them."""
