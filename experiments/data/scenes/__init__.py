"""Scenes of handwritten digits with boxes and masks: data for detection and segmentation."""

from amc_compress.data.scenes.digit_scenes import CLASS_NAMES, SIDE, Scenes, digit_scenes
from amc_compress.data.scenes.targets import BoxTargets

__all__ = ["CLASS_NAMES", "SIDE", "Scenes", "digit_scenes", "BoxTargets"]
