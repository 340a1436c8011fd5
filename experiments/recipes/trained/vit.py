"""A small vision transformer, trained from nothing on images of 32 x 32 pixels.

It has the shape of DeiT-tiny (Touvron et al. 2021) as ``timm`` builds it, 12 blocks of width 192
with three heads, on patches of 4 x 4 pixels: 5.4 million parameters. The first products of queries
and keys and of values and outputs are near multiples of the identity, as they become in training
(Trockman & Kolter 2023), and positions begin as sine waves. Half of the patches of an image are
left out of a step (Liu et al. 2022), which halves its work. ::

    pip install timm
    python -m amc_compress.recipes.trained.vit vit-folder --data CIFAR10_FOLDER

An interrupted training resumes. On the command line::

    amc compress --model amc_compress.recipes.trained.vit:deit_tiny \
        --weights vit-folder/model.safetensors --data CIFAR10_FOLDER --validation-split tail \
        --budget macs=0.5 --optimizer adamw --out runs/vit

In Python::

    from amc_compress import compress
    from amc_compress.recipes.trained import vit

    train, validation, test = vit.images("vit-folder")
    result = compress(vit.network("vit-folder"), train, validation, test=test, budget="macs=0.5")
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from amc_compress.data import TensorLoader, load_data
from amc_compress.learners.training import loop
from amc_compress.learners.training.config import TrainingConfig
from amc_env.files import save_bytes, write_json
from amc_env.support.optional import needed

_WIDTH, _BLOCKS, _HEADS, _PATCH = 192, 12, 3, 4
_LEFT_OUT = 0.5  # share of an image's patches in training
_EPOCHS, _RISE, _BATCH = 1, 0.45, 64  # the learning rate rises for that share
_VALIDATED = 1000  # images that are looked at after an epoch
_WEIGHTS, _RECORD = "model.safetensors", "training.json"
_QUERY_KEY, _VALUE_OUTPUT = (0.7, 0.7), (0.4, -0.4)  # shares of noise and of the identity

Batches = list[tuple[Tensor, Tensor]]


def deit_tiny(
    num_classes: int = 10, img_size: int = 32, in_chans: int = 3, left_out: float = 0.0
) -> nn.Module:
    """Returns the network, untrained.

    Args:
        num_classes: Number of outputs.
        img_size: Height and width of the images in pixels.
        in_chans: Their channels.
        left_out: Share of the patches that a step of training leaves out.

    Raises:
        MissingDependencyError: If ``timm`` is not installed.
    """
    library = needed(
        "timm.models.vision_transformer",
        "Expected timm for the vision transformer, found none; `pip install timm`.",
    )
    model: nn.Module = library.VisionTransformer(
        img_size=img_size, in_chans=in_chans, patch_size=_PATCH, embed_dim=_WIDTH, depth=_BLOCKS,
        num_heads=_HEADS, num_classes=num_classes, patch_drop_rate=left_out,
    )  # fmt: skip
    return model


def network(folder: str | Path) -> nn.Module:
    """Returns the trained network of a folder, for evaluation."""
    weights = safetensors.torch.load_file(Path(folder) / _WEIGHTS)
    side = _PATCH * math.isqrt(weights["pos_embed"].shape[1] - 1)
    channels = weights["patch_embed.proj.weight"].shape[1]
    model = deit_tiny(len(weights["head.bias"]), side, channels)
    model.load_state_dict(weights)
    return model.eval()


def images(
    folder: str | Path, counts: tuple[int, int, int] = (8192, 1000, 2000), batch_size: int = 128
) -> tuple[Batches, Batches, Batches]:
    """Returns some images of the data that a folder's network was trained on: three splits.

    Those to train on are shifted and mirrored, once.

    Args:
        folder: Of the trained network, which says where the images are.
        counts: Images to train on, to validate and to test.
        batch_size: Images of a batch.
    """
    data = json.loads((Path(folder) / _RECORD).read_text(encoding="utf-8"))["data"]
    splits = load_data(data, batch_size=batch_size, validation_split="tail", progress=False)
    parts = zip((splits.train, splits.validation, splits.test), counts, strict=True)
    first, validation, test = [_first(loader, count, batch_size) for loader, count in parts]
    return first, validation, test


def train(folder: str | Path, data: str | Path, epochs: int = _EPOCHS, seed: int = 0) -> str:
    """Trains the network, or goes on where an interrupted training ended.

    The last tenth of the training images is left to validate on.

    Args:
        folder: For the weights.
        data: Images, as ``load_data`` takes them.
        epochs: Passes over the training images.
        seed: Of the first weights, the order and the augmentation.

    Returns:
        The SHA-256 of the file of weights.
    """
    splits = load_data(data, batch_size=_BATCH, seed=seed, validation_split="tail")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _, channels, _, side = splits.example.shape
        model = deit_tiny(splits.n_classes, side, channels, _LEFT_OUT)
        _initialise(model)
    config = TrainingConfig(
        epochs=epochs, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05,
        warmup_epochs=_RISE * epochs, label_smoothing=0.1, gradient_clip=1.0, fused_optimizer=True,
        snapshot_seconds=120.0, seed=seed,
    )  # fmt: skip
    validation = list(splits.validation)[: _VALIDATED // _BATCH]
    loop.train(
        model, splits.train, validation, config,
        checkpoint_dir=Path(folder), resume=True, progress=True,
    )  # fmt: skip
    held = safetensors.torch.save(model.state_dict())
    save_bytes(Path(folder) / _WEIGHTS, held)
    place = str(Path(data).resolve()) if Path(data).exists() else str(data)
    digest = hashlib.sha256(held).hexdigest()
    record = {"data": place, "epochs": epochs, "seed": seed, "sha256": digest}
    write_json(Path(folder) / _RECORD, record)
    return digest


def _first(loader: TensorLoader, count: int, batch_size: int) -> Batches:
    """Returns the first images of a loader in batches."""
    left = range(count, 0, -batch_size)
    return [(x[:n], y[:n]) for (x, y), n in zip(loader, left, strict=False)]


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """Sets attention and positions to what training would make of them first."""
    for block in model.get_submodule("blocks").children():
        query, key, value = block.get_parameter("attn.qkv.weight").chunk(3)
        for head in range(_HEADS):
            rows = slice(head * _WIDTH // _HEADS, (head + 1) * _WIDTH // _HEADS)
            query[rows], key[rows] = _factors(*_QUERY_KEY, rank=_WIDTH // _HEADS)
        into, out = _factors(*_VALUE_OUTPUT, rank=_WIDTH)
        value.copy_(into)
        block.get_parameter("attn.proj.weight").copy_(out.T)
    places = model.get_parameter("pos_embed")
    places[0, 1:] = _waves(math.isqrt(places.shape[1] - 1))


def _factors(noise: float, identity: float, rank: int) -> tuple[Tensor, Tensor]:
    """Returns two matrices (rank, width) whose product is nearest to noise plus the identity."""
    wanted = noise * torch.randn(_WIDTH, _WIDTH) / _WIDTH**0.5 + identity * torch.eye(_WIDTH)
    left, scale, right = torch.linalg.svd(wanted)
    root = scale[:rank].sqrt()[:, None]
    return root * left.T[:rank], root * right[:rank]


def _waves(side: int) -> Tensor:
    """Returns sines and cosines (side * side, width) of the row and of the column of a patch."""
    quarter = _WIDTH // 4
    speeds = 10000.0 ** (-torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * speeds
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line.repeat_interleave(side, 0), line.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)


def main() -> None:
    """Trains from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="for the weights")
    parser.add_argument("--data", required=True, help="images, as amc train takes them")
    parser.add_argument("--epochs", type=int, default=_EPOCHS, help="default: %(default)s")
    arguments = parser.parse_args()
    print(f"weights: {train(arguments.folder, arguments.data, arguments.epochs)}")


if __name__ == "__main__":
    main()
