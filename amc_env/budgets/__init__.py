"""Budgets, and which values of a decision still meet them."""
