"""Rewrites forwards that have channel numbers baked in."""
