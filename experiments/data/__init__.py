"""Data sets in memory: digits, tables, image folders, the Hugging Face hub."""

from experiments.data.loader import Augmentation, Normalisation, RandomResizedCrop, TensorLoader
from experiments.data.splits import DataSplits, RawSplit, load_data

__all__ = [
    "DataSplits", "load_data", "TensorLoader", "Augmentation", "RandomResizedCrop",
    "Normalisation", "RawSplit",
]  # fmt: skip
