"""A run: its folder, its task, its networks."""
