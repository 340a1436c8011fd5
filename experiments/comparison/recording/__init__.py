"""Recorded tasks: evaluated plans and a surrogate, made from a real task."""
