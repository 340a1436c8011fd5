"""Samplers of Optuna as agents."""
