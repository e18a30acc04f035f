"""A shard group of real processes on real API servers, and what its operators write."""
