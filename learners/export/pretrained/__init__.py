"""Compressed networks of ``transformers`` as folders that its own classes load."""
