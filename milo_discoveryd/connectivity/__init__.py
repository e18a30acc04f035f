"""Whether the engaged clusters' API servers are reached: when to probe which (pure), and the probing."""
