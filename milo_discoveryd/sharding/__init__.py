"""Distribution of the clusters over the members of a group, each a daemon with its operator."""
