"""Comparison of agents on the same tasks, with equal evaluations, over seeds."""
