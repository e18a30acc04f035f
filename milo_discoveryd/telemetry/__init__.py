"""What the daemon tells of itself: logs, metrics, and the HTTP endpoint that has them."""
