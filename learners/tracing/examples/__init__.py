"""Inputs that a network is traced and proved on."""
