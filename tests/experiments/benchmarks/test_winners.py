"""Sizes and latencies of winners as files; what they score is tested with the comparison."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from amc_compress.benchmarks.agents import winners
from amc_compress.learners import make_task


class Words(nn.Module):
    """Reads ids and a mask, as encoders do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(20, 64), nn.Linear(64, width)
        self.head = nn.Linear(width, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids) * attention_mask.unsqueeze(-1)
        answer: Tensor = self.head(torch.relu(self.inner(x)).mean(1))
        return answer


def test_files_of_networks_that_read_several_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winners, "_SECONDS", 0.1)
    large, small = Words(256).eval(), Words(16).eval()
    task = make_task("embedding").bind(copy.deepcopy(large), "cpu")
    ids = torch.arange(40).view(4, 10) % 20
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    table = winners._files({"uniform": small, "original": large}, [batch], task)
    sizes = [float(line.split("|")[2]) for line in table.splitlines()[2:]]
    assert sizes[1] > sizes[0] > 0


@pytest.mark.slow
def test_files_are_written_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winners, "_SECONDS", 0.1)
    large = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
    small = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    task = make_task("embedding").bind(copy.deepcopy(large), "cpu")
    table = winners._files({"uniform": small, "original": large}, [(torch.randn(16, 64),)], task)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == ["uniform", "original"]
    sizes = [float(row[1]) for row in rows]
    assert sizes[1] > 4 * sizes[0] > 0
    assert all(float(cell) > 0 for row in rows for cell in row[2:])
