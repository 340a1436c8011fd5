"""The off-policy actor-critics of Stable-Baselines3, and what they share."""
