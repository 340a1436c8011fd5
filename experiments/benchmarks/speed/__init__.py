"""Benchmarks of speed: episodes, latency tables, exported files."""
