"""Dtypes, memory layout, and kernels that are used only where they were verified."""
