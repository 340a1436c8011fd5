"""Evaluations in other processes and on other machines."""
