"""Ready-made tasks, one file each."""
