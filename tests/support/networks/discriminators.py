"""A trained network with auxiliary heads, for the tests of discrimination-aware pruning."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from amc_compress.learners.channel_pruning.discrimination.heads import Discriminator
from amc_compress.learners.channel_pruning.discrimination.places import find_places
from amc_compress.learners.testing.networks import make_model


@functools.cache
def trained(name):
    return make_model(name)


def model_of(name):
    return copy.deepcopy(trained(name))


def discriminator_of(model, image, count=2, classes=4):
    """A discriminator whose heads have learned something, by random numbers."""
    network = model.eval().requires_grad_(False)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    places = find_places(network, image, names, count)
    found = Discriminator(network, places.places, classes, torch.float32).eval()
    generator = torch.Generator().manual_seed(7)
    for head in found.heads:
        for tensor in (head.linear.weight, head.norm.running_mean):
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
    return found.requires_grad_(False), places
