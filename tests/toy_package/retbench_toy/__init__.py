"""An architecture and a workload of a user's own package."""
