"""Compress a network of your own with the Python API: half the MACs, in about a minute.

python experiments/examples/own_network.py
"""

from __future__ import annotations

import torch
from torch import nn

from amc_compress import export_onnx
from amc_compress.agents import OneShotDDPG
from amc_compress.data import load_data
from amc_compress.learners import ChannelPruning, TrainingConfig, evaluate, train
from amc_env import Budget, CompressionEnv


class MyNetwork(nn.Module):
    """Any nn.Module will do; this one has a residual add and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 32, 3, padding=1), nn.BatchNorm2d(32),
        )  # fmt: skip
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classifies images of shape (n, 1, 8, 8)."""
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        logits: torch.Tensor = self.head(nn.functional.max_pool2d(x, 2).flatten(1))
        return logits


def main(episodes: int = 60, epochs: int = 20) -> None:
    """Trains, searches, compresses, fine-tunes, exports."""
    torch.manual_seed(0)
    data = load_data("digits")  # or any loaders that yield (images, labels)
    model = MyNetwork()
    config = TrainingConfig(epochs=epochs, learning_rate=0.01)
    train(model, data.train, data.validation, config)

    learner = ChannelPruning(
        model, data.train.images[:1], data.calibration, data.validation, round_to=4
    )
    env = CompressionEnv(learner, budget=Budget(macs=0.5))
    result = OneShotDDPG().search(env, episodes=episodes, seed=0, progress=True)
    small = learner.compress(result.plan)
    learner.finetune(small, data.train, config=config, teacher=model)
    export_onnx(small, data.train.images[:1], "small.onnx")
    print(f"cost ratios {env.cost_ratio(result.plan)}")
    print(f"test accuracy {evaluate(model, data.test):.4f} -> {evaluate(small, data.test):.4f}")


if __name__ == "__main__":
    main()
