"""Small networks for scenes: a U-Net for masks, an anchor-free detector for boxes."""

from amc_compress.models.scenes.detector import fcos_small
from amc_compress.models.scenes.unet import unet_small

__all__ = ["fcos_small", "unet_small"]
