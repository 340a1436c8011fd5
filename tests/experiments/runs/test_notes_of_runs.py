"""What a run says of the network before any work is done."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc_compress.config.run_config import RunConfig
from amc_compress.learners.tasks.registry import make_task
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.problem import check_against


class Gated(nn.Module):
    """Convolutions along time, which get bits, and a bilinear layer, which gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 32, 3), nn.Conv1d(32, 16, 3)
        self.third = nn.Conv1d(16, 6, 1)
        self.gates = nn.Bilinear(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).mean(2)
        return self.gates(x, x)


@pytest.mark.parametrize("learner", ["uniform", "codebook", "joint"])
def test_a_run_in_bits_names_what_stays_in_float(learner):
    config = RunConfig(learner=learner, budget="mean_bits=0.5")
    facts = DataFacts("own", None, None)
    notes = check_against(
        config,
        Gated().eval(),
        facts,
        search=True,
        task=make_task("regression"),
        example=torch.randn(1, 4, 8),
    )
    assert any("gates.weight (Bilinear is no layer that gets bits)" in note for note in notes)
