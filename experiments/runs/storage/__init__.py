"""What lies in a run folder, and whether it may be used."""
