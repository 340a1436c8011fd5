"""Candidate networks: built, repaired and evaluated."""
