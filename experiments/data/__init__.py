"""Data sets, in memory or streamed: digits and their scenes, tables, shards, folders, the hub."""

from amc_compress.data.augmenting.parts import Augmentation, RandomResizedCrop
from amc_compress.data.loader import TensorLoader
from amc_compress.data.raw import RawSplit
from amc_compress.data.splits import DataSplits, load_data
from amc_compress.learners.networks.normalisation import Normalisation

__all__ = [
    "DataSplits", "load_data", "TensorLoader", "Augmentation", "RandomResizedCrop",
    "Normalisation", "RawSplit",
]  # fmt: skip
