"""Data sets in memory: digits, parquet folders, the Hugging Face hub."""

from experiments.data.loader import Augmentation, Normalisation, TensorLoader
from experiments.data.parquet import RawSplit
from experiments.data.splits import DataSplits, load_data

__all__ = ["DataSplits", "load_data", "TensorLoader", "Augmentation", "Normalisation", "RawSplit"]
