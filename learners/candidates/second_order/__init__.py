"""Rounding and pruning of weights that repairs what it does, by second order."""
