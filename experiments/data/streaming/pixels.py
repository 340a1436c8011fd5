"""Images that stay encoded until a batch needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from amc_compress.data.pictures import Decoder, complaint, no_bombs
from amc_compress.data.sources.stored import Lookup, Picture
from amc_compress.data.streaming.workers import carried_out
from amc_env.errors import InputDataError

_AT_ONCE = 64  # images that a worker decodes for one job


@dataclass(frozen=True)
class StreamedPixels:
    """What a tensor of pixels uint8 (N, C, H, W) is to a loader, decoded image by image.

    Args:
        encoded: The images of the split.
        decoder: Knows all that decides about the pixels.
        image_shape: ``(channels, height, width)`` of every image.
        rows: Which of them these are, int64 (N,).
        split: Its name, for messages.
    """

    encoded: Lookup
    decoder: Decoder
    image_shape: tuple[int, int, int]
    rows: Tensor
    split: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """That of the tensor."""
        return torch.Size((len(self.rows), *self.image_shape))

    @property
    def n_bytes(self) -> int:
        """Of the tensor."""
        return self.shape.numel()

    def __getitem__(self, indices: Tensor) -> StreamedPixels:
        """Returns some of the images, still encoded."""
        return replace(self, rows=self.rows[indices])

    def decoded(self) -> Tensor:
        """Returns the tensor.

        Raises:
            InputDataError: If an image is not what it was when the data were loaded.
        """
        made = torch.empty(self.shape, dtype=torch.uint8)
        with no_bombs():
            for place, row in enumerate(self.rows.tolist()):
                picture = self.encoded[row]
                image = decode_one(self.decoder, picture, row, self.split)
                channels, *size = self.image_shape
                if list(image.shape[:2]) != size or (image.ndim == 3 and channels == 1):
                    raise InputDataError(
                        f"{named(row, self.split, picture)} has changed since the data were "
                        f"loaded: expected {self.image_shape}, got {image.shape}; start again."
                    )
                made[place] = torch.from_numpy(channels_first(image))
        return made

    def parts(self) -> Iterator[StreamedPixels]:
        """Yields all images, a few at a time."""
        for start in range(0, len(self), _AT_ONCE):
            yield replace(self, rows=self.rows[start : start + _AT_ONCE])

    def held(self, crop: int | None, workers: int, progress: bool | None) -> Tensor:
        """Returns the tensor, decoded by several processes.

        Args:
            crop: Keep the middle square of this side; all of each image for None.
            workers: Processes.
            progress: Show a progress bar; None shows it on a terminal.
        """
        channels, height, width = self.image_shape
        height, width = (height, width) if crop is None else (crop, crop)
        whole = torch.empty(len(self), channels, height, width, dtype=torch.uint8)
        jobs = (part.rows.numpy() for part in self.parts())
        bar = tqdm(
            carried_out(_Decoding(self, crop), jobs, workers),
            f"decode {self.split}",
            total=-(-len(self) // _AT_ONCE),
            disable=None if progress is None else not progress,
            leave=False,
        )
        done = 0
        for part in bar:
            whole[done : done + len(part)] = part
            done += len(part)
        return whole


@dataclass(frozen=True)
class _Decoding:
    """Decodes some of the images, named by their rows int64 (n,)."""

    pixels: StreamedPixels
    crop: int | None

    def __call__(self, rows: np.ndarray) -> Tensor:
        part = replace(self.pixels, rows=torch.from_numpy(rows)).decoded()
        return centre(part, self.crop)


def centre(pixels: Tensor, size: int | None) -> Tensor:
    """Returns the middle ``size`` x ``size`` of every image, a view; all of it for None."""
    if size is None or pixels.shape[-1] == pixels.shape[-2] == size:
        return pixels
    top, left = (round((side - size) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def channels_first(image: np.ndarray) -> np.ndarray:
    """Returns a copy (C, H, W) of an image (H, W) or (H, W, 3)."""
    return np.array(image.transpose(2, 0, 1) if image.ndim == 3 else image[None])


def decode_one(decoder: Decoder, picture: Picture, index: int, split: str) -> np.ndarray:
    """Returns uint8 pixels, (H, W) or (H, W, 3), of an image of a split.

    Raises:
        InputDataError: If it cannot be decoded.
        KeyError: Its mode, if the range of that is not known yet.
    """
    try:
        return decoder.decode(picture)
    except KeyError as error:
        if error.args[0] in ("I", "F"):
            raise
        raise unusable(index, split, picture, error) from error
    except Exception as error:  # a damaged file may make its decoder raise anything
        raise unusable(index, split, picture, error) from error


def named(index: int, split: str, picture: Picture) -> str:
    """Returns how messages call an image."""
    file = "" if isinstance(picture, bytes) else f" ({picture})"
    return f"Image {index} of the {split} split{file}"


def unusable(index: int, split: str, picture: Picture, error: Exception) -> InputDataError:
    """Returns the error for an image that cannot be decoded."""
    return InputDataError(f"{named(index, split, picture)} {complaint(error)}.")


def of_another_size(name: str, size: tuple[int, ...], first: tuple[int, ...]) -> InputDataError:
    """Returns the error for an image of another ``(height, width)`` than the first."""
    return InputDataError(
        f"{name} is {size[1]} x {size[0]} pixels, but the first is {first[1]} x {first[0]}: give "
        f"--image-size N to scale and crop all of them to N x N."
    )
