"""Contents of a run folder, and whether it may be used."""
