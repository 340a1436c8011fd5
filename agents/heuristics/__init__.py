"""Agents without a model: random, hand-made, hill climbing, evolution."""
