"""Latency tables measured on this machine."""
