"""Checkpoints inside an epoch."""
