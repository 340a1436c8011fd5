"""Quantization: k-bit weights and activations, uniform or by codebook."""
