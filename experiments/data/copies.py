"""Duplicate images in a data set, found by their pixels.

An image that is trained on must not validate: it would be recognised, not understood. Training
images that equal a validation image are left out of training; nothing else changes. The test
images of a data set are what they are: equal ones are only counted.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def digests_of(pixels: Tensor) -> Tensor:
    """Returns a digest of each image: uint8 (N, C, H, W) -> int64 (N,).

    Equal digests are equal pixels, but for a chance of one in ten million among a million images.
    """
    rows = pixels.flatten(1).numpy()
    made = b"".join(hashlib.sha1(row, usedforsecurity=False).digest()[:8] for row in rows)
    return torch.frombuffer(bytearray(made), dtype=torch.int64)


def are_in(digests: Tensor, others: Tensor) -> Tensor:
    """Returns which of N images are among M others: bool (N,)."""
    return torch.from_numpy(np.isin(digests.numpy(), others.numpy()))


def repeated(digests: Tensor) -> int:
    """Returns how many of the images repeat an earlier one."""
    return len(digests) - len(np.unique(digests.numpy()))
