"""Data larger than the memory: decoded batch by batch, by worker processes."""
