"""What is deployed, held against what the daemon is: manifests, rules, dashboards, the image's steps."""
