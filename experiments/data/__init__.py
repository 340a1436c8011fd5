"""Data sets in memory: digits and scenes of them, tables, image folders, the Hugging Face hub."""

from amc_compress.data.loader import Augmentation, RandomResizedCrop, TensorLoader
from amc_compress.data.raw import RawSplit
from amc_compress.data.splits import DataSplits, load_data
from amc_compress.learners.networks.normalisation import Normalisation

__all__ = [
    "DataSplits", "load_data", "TensorLoader", "Augmentation", "RandomResizedCrop",
    "Normalisation", "RawSplit",
]  # fmt: skip
