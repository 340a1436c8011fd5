"""How quantized networks are trained where nothing else is said."""

from __future__ import annotations

from amc_compress.learners.training.config import TrainingConfig

QUANTIZED_LEARNING_RATE = 0.01
QUANTIZED_GRADIENT_CLIP = 1.0


def quantized_training(seed: int = 0) -> TrainingConfig:
    """Returns the usual settings for training a quantized network.

    Folded norms leave channels of very different size and nothing that tames a large step: on
    ResNet-20 at two bits a rate of 0.003 diverges, unless the gradient's norm is limited.
    """
    return TrainingConfig(
        epochs=10,
        learning_rate=QUANTIZED_LEARNING_RATE,
        weight_decay=0.0,
        gradient_clip=QUANTIZED_GRADIENT_CLIP,
        seed=seed,
    )
