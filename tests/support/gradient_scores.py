"""What gradient scores are compared with: loops over images; and a network with difficulties."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from amc_compress.learners.testing.networks import CLASSES, EXAMPLE, make_data

CALIBRATION = make_data(96, 2)
DATA = (EXAMPLE, CALIBRATION, make_data(200, 3))
X, Y = (torch.cat(parts) for parts in zip(*CALIBRATION, strict=True))


class Tiny(nn.Module):
    """Works in place behind its layers, uses one of them twice, and another on tokens."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.twice = nn.Conv2d(4, 4, 1)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.act = nn.ReLU(inplace=inplace)
        self.tokens = nn.Linear(6, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        x = self.act(self.conv(x))
        x = self.act(self.twice(self.twice(x)))
        x = self.act(self.grouped(x))
        x = self.tokens(x.flatten(2).transpose(1, 2))
        return self.head(x.relu().mean(1))


def tiny(inplace=True):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Tiny(inplace).eval()


LAYERS = ("conv", "twice", "grouped", "tokens", "head")


def shift_gradients(network, layer):
    """The gradient of every image's loss by numbers added to all outputs of a layer."""
    module = network.get_submodule(layer)
    rows = []
    for x, y in zip(X.split(1), Y.split(1), strict=True):
        shift = torch.zeros(module.weight.shape[0], requires_grad=True)
        shape = (-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,)

        def add(_, __, output, shift=shift, shape=shape):
            return output + shift.view(shape)

        handle = module.register_forward_hook(add)
        loss = F.cross_entropy(network(x), y)
        handle.remove()
        rows.append(torch.autograd.grad(loss, shift)[0])
    return torch.stack(rows).double()


def slow_rise(gradients, changes):
    """Mean over all pairs of an image and a row of half the squared product, one by one."""
    total = 0.0
    for gradient in gradients:
        total += float((changes.double() @ gradient).square().mean())
    return 0.5 * total / len(gradients)


def rows_of(layer, outputs):
    return outputs.movedim(1, -1).flatten(0, 2) if isinstance(layer, nn.Conv2d) else outputs
