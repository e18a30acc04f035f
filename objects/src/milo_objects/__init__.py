"""Objects of all engaged clusters: projected, in one store with indexes."""
