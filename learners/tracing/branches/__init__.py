"""Residual branches: found, proved, and left out."""
