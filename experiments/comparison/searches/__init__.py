"""The searches of a comparison: run, stored, resumed."""
