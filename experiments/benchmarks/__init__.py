"""Measurements that anyone can run; each prints a table and says what it ran."""
