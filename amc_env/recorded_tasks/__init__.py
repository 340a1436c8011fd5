"""Tasks without a network: recorded ones, a synthetic one, and their registration."""
