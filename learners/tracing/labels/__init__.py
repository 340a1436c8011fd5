"""Labels: which coordinates of a network's tensors can only be cut together."""
