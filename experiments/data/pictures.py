"""One encoded picture to uint8: grey or RGB, upright, 8 bits, at the size that is wanted.

The rules, so that the same picture gives the same pixels however it is stored:

* 16-bit pictures are divided by 257, the range of their mode; never by what one picture contains.
* 32-bit integers and floats have no such range: the training pictures together must tell it.
* The orientation of EXIF is applied.
* What is transparent is laid over white; opaque alpha is left out.
* Palettes, CMYK, YCbCr and HSV are converted; a palette of greys is grey.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from amc_compress.data.sources.stored import Picture
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

_EXIF = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_CONVERTED = ("CMYK", "YCbCr", "HSV", "RGBX")
_ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")  # a phone's MPO has a second frame for depth
_WORD = 65535
_RANGES = {"I": (255, _WORD), "F": (1, 255, _WORD)}
"""The largest values that pictures of these modes are taken to be made for."""

NOTES = {
    "frames": "{} with several frames: the first is taken",
    "exif": "{} with an EXIF block that cannot be read: orientation left as it is",
    "turned": "{} turned as the EXIF orientation says",
    "alpha": "{} with transparent parts: laid over white",
    "CMYK": "{} in CMYK: converted to RGB without a colour profile",
    "16": "{} with 16 bits per pixel: divided by 257",
    "I": "{} of 32-bit integers: {} is white",
    "F": "{} of floats: {} is white",
}
"""What is said about pictures, by what had to be done; the first blank says how many they are."""


class Decoder:
    """Decodes the pictures of one data set.

    Args:
        size: Side in pixels of the square that is cut from the middle of each picture, after its
            shorter side was scaled to that; None leaves pictures as they are.

    Attributes:
        white: Mode ``"I"`` or ``"F"`` -> the value that becomes 255, once it is known.
        seen: How many pictures needed what, by the keys of ``NOTES``.
        brightest: The largest value of a 16-bit picture.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self.white: dict[str, int] = {}
        self.seen: Counter[str] = Counter()
        self.brightest = 0

    def decode(self, picture: Picture) -> np.ndarray:
        """Returns uint8 pixels, (H, W) for a grey picture or (H, W, 3).

        Raises:
            Exception: Anything, from the decoder of a damaged file.
            InputDataError: If the picture cannot become 8-bit grey or RGB without a guess.
        """
        with Image.open(_source(picture)) as opened:
            image = self._upright(opened)
            image = self._to_bytes(image, opened.format)
        if self.size is not None:
            image = _central_square(image, self.size)
        return np.asarray(image)

    def _upright(self, image: Image.Image) -> Image.Image:
        if self.size is not None and image.format in ("JPEG", "MPO"):
            # Decoding at an eighth costs a tenth; twice the size leaves the filter enough to do.
            factor = 2 * self.size / min(image.size)
            image.draft(None, (round(image.width * factor), round(image.height * factor)))
        if image.format in _ANIMATED and getattr(image, "is_animated", False):
            self.seen["frames"] += 1
        image.load()
        if not any(key in image.info for key in _EXIF):
            return image
        try:
            if image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9):
                return image
            turned = ImageOps.exif_transpose(image)
        except Exception:  # whatever a damaged block makes the parser do; the pixels are intact
            self.seen["exif"] += 1
            return image
        self.seen["turned"] += 1
        return turned

    def _to_bytes(self, image: Image.Image, format: str | None) -> Image.Image:
        """The picture in mode L or RGB."""
        mode = image.mode
        if mode.startswith("I;16") or (mode == "I" and format in ("PNG", "PPM")):
            return self._from_words(image)
        if mode in _RANGES:
            return self._from_numbers(image)
        if mode in _ALPHA or "transparency" in image.info:
            image = self._over_white(image)
            return _grey_if_grey(image) if mode in ("P", "PA") else image
        if mode in ("L", "RGB"):
            return image
        if mode == "1":
            return image.convert("L")
        if mode == "P":
            return _grey_if_grey(image.convert("RGB"))
        if mode in _CONVERTED:
            self.seen["CMYK"] += mode == "CMYK"
            return image.convert("RGB")
        raise InputDataError(
            f"has the mode {mode}, which has no fixed way to RGB: convert it to 8-bit grey or RGB"
        )

    def _from_words(self, image: Image.Image) -> Image.Image:
        words = np.asarray(image).astype(np.int64)
        self.seen["16"] += 1
        self.brightest = max(self.brightest, int(words.max()))
        bytes_ = (words + 128) // 257
        clear = image.info.get("transparency")
        if isinstance(clear, int) and (words == clear).any():
            self.seen["alpha"] += 1
            bytes_[words == clear] = 255
        return Image.fromarray(bytes_.astype(np.uint8))

    def _from_numbers(self, image: Image.Image) -> Image.Image:
        mode = image.mode
        white = self.white[mode]
        low, high = extremes(image)
        if low < 0 or high > white * 1.001:
            raise InputDataError(
                f"has values from {low:g} to {high:g} in mode {mode}, but those of the training "
                f"images lie in 0 to {white}: scale all images alike and store them with 8 bits"
            )
        self.seen[mode] += 1
        scaled = np.asarray(image).astype(np.float64) * (255 / white)
        return Image.fromarray(np.rint(scaled.clip(0, 255)).astype(np.uint8))

    def _over_white(self, image: Image.Image) -> Image.Image:
        grey = image.mode in ("1", "L", "LA", "La")
        if image.mode in ("La", "RGBa"):  # colours that are already multiplied by their alpha
            image = image.convert("LA" if grey else "RGBA")
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            self.seen["alpha"] += 1
            canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            rgba = Image.alpha_composite(canvas, rgba)
        return rgba.getchannel(0) if grey else rgba.convert("RGB")


def _source(picture: Picture) -> io.BytesIO | Path:
    return io.BytesIO(picture) if isinstance(picture, bytes) else picture


def _grey_if_grey(image: Image.Image) -> Image.Image:
    """Converts a palette picture to grey if all its colours are."""
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)
    grey = np.array_equal(red, green) and np.array_equal(red, blue)
    return image.getchannel(0) if grey else image


def _central_square(image: Image.Image, size: int) -> Image.Image:
    """The middle of a picture whose shorter side is scaled to ``size``, in one step."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def extremes(image: Image.Image) -> tuple[float, float]:
    """Returns the least and the largest value.

    Raises:
        InputDataError: If there are values that are no finite numbers.
    """
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise InputDataError("holds values that are NaN or infinite: replace them")
    return float(values.min()), float(values.max())


def white_of(mode: str, lows: Iterable[float], highs: Iterable[float]) -> int:
    """Returns the largest value that pictures of mode I or F are made for: 1, 255 or 65535.

    Args:
        mode: ``"I"`` or ``"F"``.
        lows: The least value of each picture.
        highs: The largest.

    Raises:
        InputDataError: If the values do not tell.
    """
    low, high = min(lows), max(highs)
    for white in _RANGES[mode]:
        if low >= 0 and white / 2 < high <= white * 1.001:
            return white
    ranges = " or ".join(f"0 to {white}" for white in _RANGES[mode])
    raise InputDataError(
        f"images of mode {mode} with values from {low:g} to {high:g}: expected {ranges}, used in "
        f"their upper half, to know what is white; scale the images and store them with 8 bits"
    )


def numeric_mode(picture: Picture) -> tuple[str, float, float] | None:
    """Returns (mode, least, largest value) of a picture of mode I or F without a fixed range."""
    with Image.open(_source(picture)) as image:
        if image.mode not in _RANGES or (image.mode == "I" and image.format in ("PNG", "PPM")):
            return None
        return (image.mode, *extremes(image))


@contextlib.contextmanager
def no_bombs() -> Iterator[None]:
    """Makes a picture of absurd size an error in this block, where Pillow only warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def complaint(error: Exception) -> str:
    """Returns what is wrong with a picture that could not be decoded, behind "Image 3 ... "."""
    if isinstance(error, InputDataError):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"claims more than {Image.MAX_IMAGE_PIXELS:,} pixels, as files made to exhaust the "
            "memory do: scale it down or remove it"
        )
    if isinstance(error, UnidentifiedImageError):
        reason = "of an unknown format"
    else:
        reason = first_line(error, 120)
    return f"is damaged or not an image ({reason}): expected an encoded picture such as PNG or JPEG"
