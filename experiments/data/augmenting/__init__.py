"""Augmentation of training images: of our own, and of torchvision."""
