"""The report of a run: page, pictures, summary."""
