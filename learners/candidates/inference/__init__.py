"""Evaluation at full speed: fused networks on images that are held in memory."""
