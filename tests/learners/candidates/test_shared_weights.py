"""Networks that are evaluated and let go hold no weight of the original a second time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amc_compress.learners import UniformQuantization, WeightSparsification
from amc_compress.learners.candidates.evaluator import _plain
from amc_compress.learners.candidates.timing import CandidateSeconds
from amc_compress.learners.testing.networks import EXAMPLE, make_data
from amc_env.plan import CompressionPlan

LEARNERS = {
    "nearest": (UniformQuantization, {"weight_bits": (3, 16)}),
    "gptq": (UniformQuantization, {"weight_bits": (3, 16), "rounding": "gptq"}),
    "zeros": (WeightSparsification, {}),
}


def places(*networks: nn.Module) -> dict[int, int]:
    """Returns where the numbers of all weights are, and how many bytes they take there."""
    found = (p for net in networks for p in net.parameters() if p.dim() > 1)
    return {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in found}


def linear() -> nn.Sequential:
    first, second, last = nn.Linear(192, 32), nn.Linear(32, 24), nn.Linear(24, 4)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), last)


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_candidate_adds_the_weights_that_it_changes_and_the_original_stays_as_it_was(kind):
    learner_class, options = LEARNERS[kind]
    train, validation = make_data(96, 0), make_data(64, 1)
    torch.manual_seed(0)
    given = {"n_calibration": 64, "ignore": ("1",), "seed": 0, **options}
    learner = learner_class(linear().eval(), EXAMPLE, train, validation, **given)
    original = learner.original
    before = {name: x.clone() for name, x in original.state_dict().items()}
    plan = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
    score = learner.evaluate(plan)
    candidate = learner._candidate(learner._read(plan), CandidateSeconds())
    evaluated = _plain(candidate)
    held = places(original)
    if kind == "zeros":  # it is put together from what was solved
        levels = learner.fitted.levels._held.values()
        held |= {level["weight"].untyped_storage().data_ptr(): 0 for level in levels}
    added = places(candidate, evaluated).items() - held.items()
    changed = sum(original[i].weight.nbytes for i in (3, 5))
    assert sum(size for place, size in added if place not in held) == changed * (kind != "zeros")
    assert evaluated.get_submodule("1").weight.data_ptr() == original[1].weight.data_ptr()
    finished = learner.compress(plan)
    assert not places(finished).keys() & places(original).keys()
    with torch.no_grad():
        for parameter in finished.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(x, before[name]) for name, x in original.state_dict().items())
    assert learner.evaluate(plan) == score
