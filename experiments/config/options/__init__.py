"""The options of a run, one field each."""
