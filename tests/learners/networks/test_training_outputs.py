"""Networks that return, or do, something else while they are trained."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from support.networks.sometimes_networks import AuxiliaryHead, Trunk, conv
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning, TrainingConfig, train
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.training.data_checks import forward
from amc_env import Budget, CompressionEnv
from amc_env.errors import InputDataError

IMAGES = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 4
Outputs = namedtuple("Outputs", ("logits", "aux"))


@dataclass
class Answer:
    logits: Tensor


class Returning(Trunk):
    def __init__(self, pack: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x: Tensor) -> object:
        out = super().forward(x)
        return self.pack(out) if self.training else out


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: (x, x * 2), lambda x: [x], lambda x: Outputs(x, None),
        lambda x: {"aux": x * 2, "logits": x}, Answer,
    ],
)  # fmt: skip
def test_the_main_output_of_training_is_what_is_trained(pack: Callable[[Tensor], object]) -> None:
    net = Returning(pack).train()
    assert torch.equal(
        forward(net, IMAGES, LABELS, task=CLASSIFICATION), net.classify(net.a(IMAGES).relu())
    )
    result = train(net, [(IMAGES, LABELS)], [(IMAGES, LABELS)], TrainingConfig(epochs=1))
    assert result.history


def test_other_outputs_of_training_are_named() -> None:
    net = Returning(lambda x: {"a": x}).train()
    with pytest.raises(InputDataError, match=r"in training mode, got dict: return the logits"):
        forward(net, IMAGES, LABELS, task=CLASSIFICATION)


def test_code_that_fails_in_training_only_is_not_blamed_on_the_images() -> None:
    class Wrong(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.aux = conv(9, 2)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.aux(self.norm(self.a(x)))
            return super().forward(x)

    net = Wrong().train()
    with pytest.raises(InputDataError, match=r"runs in evaluation mode, but not in training mode"):
        forward(net, IMAGES, LABELS, task=CLASSIFICATION)
    assert all(module.training for module in net.modules())


def test_a_network_with_an_auxiliary_head_is_cut_and_fine_tuned() -> None:
    torch.manual_seed(0)
    batches = [(IMAGES, LABELS)]
    learner = ChannelPruning(AuxiliaryHead(), IMAGES[:1], batches, batches, round_to=2)
    env = CompressionEnv(learner, budget=Budget(macs=0.5))
    small = learner.compress(env.uniform_plan())
    assert small.aux[0].in_channels == small.a.out_channels < 8
    learner.finetune(small, batches, epochs=1)
