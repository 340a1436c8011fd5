"""Weight sparsification keeps the contract of learners, in its main configurations."""

from __future__ import annotations

import pytest
from contracts.precision_contract import PrecisionContract
from torch import nn

from amc_compress.learners import WeightSparsification
from amc_compress.learners.sparsification import finalise
from amc_compress.learners.testing.networks import count_macs
from amc_env import Budget


def layers_of(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


class SparsificationContract(PrecisionContract):
    budget = Budget(density=0.5)
    unknown_key = "elsewhere:density"

    def make(self, model, example, calibration, validation, **options):
        options = {**self.options, **options}
        return WeightSparsification(model, example, calibration, validation, **options)

    def measured(self, learner, network, original):
        plain = finalise(network)
        non_zero = sum(int((m.weight != 0).sum()) for m in layers_of(plain))
        dense = sum(m.weight.numel() for m in layers_of(original))
        learned = sum(p.numel() for p in original.parameters())
        return {
            "macs": count_macs(network) / count_macs(original),
            "density": non_zero / dense,
            "params": (learned - dense + non_zero) / learned,
        }


class TestUnstructured(SparsificationContract):
    options = {"schedule_frequency": 1}  # noqa: RUF012


@pytest.mark.slow
class TestTwoOfFourInOneShot(SparsificationContract):
    """First layers, whose inputs are no multiple of four, and the depthwise ones stay dense."""

    budget = Budget(density=0.75)
    options = {"pattern": "2:4", "schedule": "one-shot"}  # noqa: RUF012
