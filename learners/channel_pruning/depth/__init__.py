"""What makes up for branches that are left out."""
