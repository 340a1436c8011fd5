"""Masked copies: what a cut network must compute, at the original's size."""
