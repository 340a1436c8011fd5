"""The divergence from the original's distribution of tokens is that of a slow formula."""

from __future__ import annotations

import math

import pytest
import torch
from support import tasks as small
from torch import nn

from amc_compress.learners import make_task
from amc_compress.learners.candidates.gradient_scores import curvature_root
from amc_compress.learners.tasks.inputs import Split, tensors_of
from amc_compress.learners.tasks.ready import token_distribution
from amc_env.errors import InputDataError


class Table(nn.Module):
    """Logits of the next token by the present one."""

    def __init__(self, vocabulary: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Embedding(vocabulary, vocabulary)
        self.logits.weight.data = 2 * torch.randn(vocabulary, vocabulary, generator=generator)
        self.asked: list[int] = []

    def forward(self, input_ids, attention_mask=None):
        self.asked.append(len(input_ids))
        return {"logits": self.logits(input_ids)}


def slow(theirs, ours, mask, kept):
    """Kullback and Leibler's sum over the kept tokens and the rest, place by place, in float64."""
    total, places = 0.0, 0
    for row in range(len(theirs)):
        for place in range(theirs.shape[1]):
            if not mask[row, place]:
                continue
            p, q = (x[row, place].double().softmax(0) for x in (theirs, ours))
            order = p.argsort(descending=True)[:kept]
            left = [float(p.sum() - p[order].sum()), float(q.sum() - q[order].sum())]
            for a, b in [*zip(p[order].tolist(), q[order].tolist(), strict=True), left]:
                total += a * math.log(a / b) if a > 1e-12 else 0.0
            places += 1
    return total / places


@pytest.mark.parametrize(("vocabulary", "kept"), [(31, 31), (900, 256)])
def test_the_score_is_the_divergence_of_a_slow_formula(vocabulary, kept):
    original, other = Table(vocabulary), Table(vocabulary, seed=1)
    task = make_task("token-distribution").bind(original.eval(), "cpu")
    ids = small.whole(vocabulary, 3, 7, seed=0)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    inputs, none = task.split({"input_ids": ids, "attention_mask": mask, "labels": ids})
    targets = task.complete(inputs, none)
    outputs = task.outputs(task.ask(other, inputs)).detach()
    expected = slow(original.logits(ids).detach(), outputs, mask, kept)
    meter = task.meter(reported=True)
    meter.update(outputs, targets)
    found = meter.compute()
    assert found["kl_divergence"] == pytest.approx(expected, rel=1e-3)
    assert float(task.loss(outputs, targets)) == pytest.approx(expected, rel=1e-3)
    assert task.loss_terms(inputs, targets) == 18
    first = (outputs.argmax(-1) == original.logits(ids).argmax(-1))[mask == 1]
    assert found["agreement"] == pytest.approx(float(first.double().mean()))
    itself = task.meter(reported=True)
    itself.update(original.logits(ids).detach(), targets)
    assert itself.compute() == pytest.approx({"kl_divergence": 0.0, "agreement": 1.0}, abs=1e-5)


def test_what_is_held_is_bounded_and_the_original_is_asked_in_parts(monkeypatch):
    original = Table(900).eval()
    task = make_task("token-distribution").bind(original, "cpu")
    ids = small.whole(900, 6, 5, seed=0)
    whole = task.complete(ids, None)
    held = sum(tensor.numel() * tensor.itemsize for tensor in tensors_of(whole))
    assert held <= ids.numel() * 1600
    monkeypatch.setattr(token_distribution, "_AT_ONCE", 2 * 5 * 900)
    original.asked.clear()
    parts = task.complete(ids, None)
    assert original.asked == [1, 2, 2, 1]
    assert all(map(torch.equal, tensors_of(parts), tensors_of(whole)))


def test_gradients_at_the_original_are_the_fisher_information_of_its_distribution():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 5)

        def forward(self, ids):
            return self.head(self.embedding(ids))

    network = small.seeded(Shifted, 0).eval()
    task = make_task("token-distribution").bind(network, "cpu")
    ids = small.whole(6, 4096, 1, seed=0)
    root = curvature_root(network, [Split(ids, task.complete(ids, None))], ["head"], task)["head"]
    shares = network(ids)[:, 0].detach().softmax(1)
    fisher = (torch.diag_embed(shares) - shares[:, :, None] * shares[:, None]).mean(0)
    torch.testing.assert_close(root.T @ root, fisher, atol=0.02, rtol=0.0)


def test_another_vocabulary_and_no_logits_are_said():
    task = make_task("token-distribution").bind(Table(9).eval(), "cpu")
    ids = small.whole(9, 2, 3, seed=0)
    with pytest.raises(InputDataError, match=r"logits of shape \[2, 3, 9\] like the original"):
        task.check(torch.zeros(2, 3, 8), task.complete(ids, None))
    with pytest.raises(InputDataError, match="return the logits"):
        make_task("token-distribution").bind(nn.Flatten(0), "cpu").complete(torch.ones(4), None)
