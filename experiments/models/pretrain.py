"""Trains the network whose weights come with the package.

``python -m amc_compress.models.pretrain``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch

from amc_compress.data import load_data
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate, train
from amc_compress.models import make_model
from amc_env.files import save_bytes

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "digitsnet.safetensors"
CONFIG = TrainingConfig(
    epochs=60, learning_rate=0.05, schedule="cosine", label_smoothing=0.1, precision="fp32"
)


def main() -> None:
    """Train digitsnet on digits with seed 0 and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write")
    out: Path = parser.parse_args().out

    torch.set_num_threads(1)  # sums in another order give other last bits
    torch.use_deterministic_algorithms(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model("digitsnet", n_classes=10, in_channels=1)
    data = load_data("digits", batch_size=64, seed=0)
    result = train(model, data.train, data.validation, CONFIG, progress=True)
    accuracy = evaluate(model, data.test, precision="fp32")
    save_bytes(out, safetensors.torch.save(model.state_dict()))
    print(
        f"validation {result.best_score:.4f} (epoch {result.best_epoch + 1}), "
        f"test {accuracy:.4f}, {result.seconds:.1f} s, written to {out}"
    )


if __name__ == "__main__":
    main()
