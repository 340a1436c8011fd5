"""Agents that measure each decision on its own, and priors made from such curves."""
