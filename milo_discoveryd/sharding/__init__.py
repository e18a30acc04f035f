"""Distribution of the clusters among the members of a group. Each member is a daemon with its operator."""
