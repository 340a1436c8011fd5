"""The options of a run: fields, defaults, checks."""
