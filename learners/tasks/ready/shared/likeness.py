"""How alike the outputs of two networks are, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cosine(outputs: Tensor, reference: Tensor) -> Tensor:
    """Returns the cosine of each sample's numbers, shape (N,); 0 where one of both is all 0."""
    return functional.cosine_similarity(_vectors(outputs), _vectors(reference), dim=1)


def likeness(outputs: Tensor, reference: Tensor) -> Tensor:
    """Returns ``max(0, 1 - |a - b|^2 / (|a|^2 + |b|^2))`` of each sample, shape (N,).

    Of two vectors of equal length it is their cosine, of others less: 1 means equal, and a network
    that returns the double is not taken for the same one. Both all 0 are equal.
    """
    return 1.0 - distance(outputs, reference).clamp(max=1.0)


def distance(outputs: Tensor, reference: Tensor) -> Tensor:
    """Returns ``|a - b|^2 / (|a|^2 + |b|^2)`` of each sample, in [0, 2], shape (N,)."""
    a, b = _vectors(outputs), _vectors(reference)
    size = a.square().sum(1) + b.square().sum(1)
    return (a - b).square().sum(1) / size.clamp(min=1e-30)


def disturbed(reference: Tensor, share: float, seed: int) -> Tensor:
    """Returns each sample's numbers, moved by a share of their length in a random direction."""
    vectors = _vectors(reference)
    moved: Tensor = vectors + share * vectors.norm(dim=1, keepdim=True) * _directions(vectors, seed)
    return moved.reshape(reference.shape)


def perpendicular(reference: Tensor, seed: int) -> Tensor:
    """Returns a random direction at a right angle to each sample's numbers, of their shape.

    The gradient of the cosine to it, at these numbers, is such a direction too, divided by their
    length: its second moment is the curvature of the cosine, up to a factor.
    """
    vectors = functional.normalize(_vectors(reference), dim=1)
    noise = _directions(vectors, seed)
    along = (noise * vectors).sum(1, keepdim=True)
    return functional.normalize(noise - along * vectors, dim=1).reshape(reference.shape)


def _directions(vectors: Tensor, seed: int) -> Tensor:
    """Returns random directions of the shape (N, width) of some vectors."""
    generator = torch.Generator(vectors.device).manual_seed(seed)
    noise = torch.randn(vectors.shape, generator=generator, device=vectors.device)
    return functional.normalize(noise, dim=1)


def _vectors(value: Tensor) -> Tensor:
    value = value.float() if value.dtype.itemsize < 4 else value
    return value.reshape(len(value), -1)
