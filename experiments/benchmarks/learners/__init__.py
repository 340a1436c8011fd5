"""Benchmarks of learners."""
