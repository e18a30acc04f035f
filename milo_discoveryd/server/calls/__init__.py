"""The RPCs: requests in, responses and event batches out."""
