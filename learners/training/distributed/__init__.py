"""Training on several devices: one process each, joined by ``torch.distributed``."""
