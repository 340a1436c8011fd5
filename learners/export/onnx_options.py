"""Inputs, free axes and metadata of deployed ONNX files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from amc_compress.learners.networks.normalisation import Normalisation
from amc_env.validation.checks import check_known

BATCH = "batch"
INPUT = "images"
OUTPUT = "logits"
SEQUENCE = "sequence"
_NAME = re.compile(r"[A-Za-z_]\w*")
_LARGEST_PIXEL = 255.0  # what 8 bits hold


@dataclass(frozen=True)
class OnnxOptions:
    """How a network is written as ONNX.

    Args:
        opset: Version of the operator set; the exporter's choice if not given.
        batch: Number of samples per call; any number if not given.
        half: Whether to compute in float16. Inputs and outputs stay float32.
        input_name: Name of the input tensor, of networks with one; ``images`` for images and the
            name of the network's argument for all else, if not given.
        preprocessing: Put into the file: its input is then uint8 pixels, not normalised.
        metadata: Key -> text, stored in the file.
        axes: Input -> axis -> name, for axes besides the batch that may have any length; axis 1 of
            integers of shape (N, length), such as token ids, if not given. What the network needs
            at one length keeps it.

    Raises:
        ValueError: If an option is out of range.
    """

    opset: int | None = None
    batch: int | None = None
    half: bool = False
    input_name: str | None = None
    preprocessing: Normalisation | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, Mapping[int, str]] | None = None

    def __post_init__(self) -> None:
        if self.opset is not None and not 18 <= self.opset <= 23:
            raise ValueError(f"Expected an --opset from 18 to 23, got {self.opset}.")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"Expected --batch >= 1, got {self.batch}.")
        if self.input_name is not None and not _NAME.fullmatch(self.input_name):
            raise ValueError(
                f"Expected --input-name as a name of letters, digits and _, got "
                f"{self.input_name!r}."
            )
        if self.input_name == OUTPUT:
            raise ValueError(f"Expected another --input-name than {OUTPUT!r}, which is the output.")
        scale = _LARGEST_PIXEL if self.preprocessing is None else self.preprocessing.scale
        if scale > _LARGEST_PIXEL:
            raise ValueError(
                f"Expected 8-bit pixels for --include-preprocessing, got data with pixels up to "
                f"{scale:g}; leave the option out."
            )

    def feed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images as the network takes them, and as the file takes them.

        Args:
            images: Normalised float32 images, shape (N, C, H, W).
        """
        if self.preprocessing is None:
            return images, images
        mean = torch.tensor(self.preprocessing.mean).view(-1, 1, 1)
        std = torch.tensor(self.preprocessing.std).view(-1, 1, 1)
        pixels = ((images * std + mean) * self.preprocessing.scale).round()
        pixels = pixels.clamp(0, _LARGEST_PIXEL).to(torch.uint8)
        return self.preprocessing(pixels), pixels


INT4, INT8_DYNAMIC = "int4", "int8-dynamic"
KINDS = (INT4, INT8_DYNAMIC)
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Consecutive inputs that share a scale, as ``MatMulNBits`` takes them."""


@dataclass(frozen=True)
class Integers:
    """How weights become integers without calibration.

    Args:
        kind: Of a float network: ``"int4"`` rounds the weights of all linear layers in blocks by
            ONNX Runtime's quantizer; ``"int8-dynamic"`` computes them in 8-bit integers, with a
            range of the inputs that is taken anew at each call. Of a quantized network the bits of
            a layer choose, and ``"int8-dynamic"`` takes that for all of them.
        block_size: Consecutive inputs that share a scale. Groups of a quantized network keep
            their own size.
        symmetric: Whether blocks that are rounded here have no zero points.

    Raises:
        ValueError: If there is no such kind or size.
    """

    kind: str = INT4
    block_size: int = 32
    symmetric: bool = False

    def __post_init__(self) -> None:
        check_known("--integers", self.kind, KINDS)
        if self.block_size not in BLOCK_SIZES:
            raise ValueError(
                f"Expected a --block-size of {', '.join(map(str, BLOCK_SIZES))}, got "
                f"{self.block_size}."
            )


def file_metadata(
    class_names: Sequence[str], normalisation: Normalisation, image_shape: Sequence[int]
) -> dict[str, str]:
    """Returns what users of the file need to know: classes, and how images are prepared.

    Args:
        class_names: By number of the output.
        normalisation: Of the images.
        image_shape: (C, H, W).
    """
    return {
        "classes": json.dumps(list(class_names)),
        "image_shape": json.dumps(list(image_shape)),
        "scale": json.dumps(normalisation.scale),
        "mean": json.dumps(list(normalisation.mean)),
        "std": json.dumps(list(normalisation.std)),
    }
