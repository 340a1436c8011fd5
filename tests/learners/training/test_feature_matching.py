"""Feature matching against loops over positions; and what any teacher must go through."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from support.networks.torture_networks import ResNet20
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model, plain
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.feature_matching import FeatureMatching, attention_map
from amc_compress.learners.training.loop import train
from amc_env import CompressionPlan
from amc_env.errors import InputDataError, RunFolderError

FAST = TrainingConfig(epochs=1, learning_rate=0.01, precision="fp32")


class Stages(nn.Module):
    """Two resolutions; ``tail`` ends the first one, ``two`` the second."""

    def __init__(self, width: int = 4, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.one = nn.Conv2d(3, width, 3, padding=1)
            self.tail = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(inplace=True))
            self.two = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
            self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tail(self.one(x).relu())
        return self.head(self.two(x).relu().mean((2, 3)))


def slow_distance(student: Tensor, teacher: Tensor) -> float:
    """Mean over images and positions, in Python numbers."""
    total, count = 0.0, 0
    for s_image, t_image in zip(student.double(), teacher.double(), strict=True):
        maps = []
        for image in (s_image, t_image):
            height, width = image.shape[1:]
            q = [sum(v * v for v in image[:, i, j].tolist())
                 for i in range(height) for j in range(width)]  # fmt: skip
            norm = math.sqrt(sum(v * v for v in q))
            maps.append([v / norm for v in q])
        total += sum((a - b) ** 2 for a, b in zip(*maps, strict=True))
        count += len(maps[0])
    return total / count


def matched(hook: FeatureMatching, student: nn.Module, teacher: nn.Module, x: Tensor) -> Tensor:
    hook.start(student, teacher, 10)
    hook.before_step(0)
    with torch.no_grad():
        teacher(x)
    student(x)
    loss = hook.loss()
    hook.finish()
    assert loss is not None
    return loss


def inner(network: Stages, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        one = network.one(x)
        tail = network.tail(one.relu())
        return one, tail, network.two(tail)


X = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def test_the_chosen_layers_are_the_ends_of_the_stages() -> None:
    student, teacher = Stages(4), Stages(7, seed=1)
    (_, s1, s2), (_, t1, t2) = inner(student, X), inner(teacher, X)
    expected = 0.5 * 40.0 * (slow_distance(s1, t1) + slow_distance(s2, t2))
    assert matched(FeatureMatching(weight=40.0), student, teacher, X).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_named_layers_meet_their_namesakes() -> None:
    student, teacher = Stages(4), Stages(7, seed=1)
    (s0, *_), (t0, *_) = inner(student, X), inner(teacher, X)
    found = matched(FeatureMatching(["one"], weight=2.0), student, teacher, X).item()
    assert found == pytest.approx(slow_distance(s0, t0), rel=1e-5)


def test_a_teacher_without_the_name_gives_its_last_layer_of_the_resolution() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Stages(5, seed=2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x)
            return out

    student, teacher = Stages(4), Other()
    (s0, *_), (_, t1, _) = inner(student, X), inner(teacher.body, X)
    found = matched(FeatureMatching(["one"], weight=2.0), student, teacher, X).item()
    assert found == pytest.approx(slow_distance(s0, t1), rel=1e-5)


def test_vectors_are_matched_where_widths_agree() -> None:
    student, teacher = Stages(4), Stages(4, seed=1)
    with torch.no_grad():
        a, b = (n(X) / n(X).norm(dim=1, keepdim=True) for n in (student, teacher))
    found = matched(FeatureMatching(["head"], weight=2.0), student, teacher, X).item()
    assert found == pytest.approx((a - b).square().mean().item(), rel=1e-5)
    with pytest.raises(InputDataError, match=r"'head' answers with vectors of shape \[3, 4\]"):
        matched(FeatureMatching(["head"]), Stages(4), Stages(4, classes=6), X)


def test_the_gradient_is_that_of_finite_differences() -> None:
    student, teacher = Stages(3), Stages(5, seed=1)
    weight = student.one.weight
    matched(FeatureMatching(weight=500.0), student, teacher, X).backward()
    assert weight.grad is not None
    for index in [(0, 0, 0, 0), (2, 1, 1, 2), (1, 2, 2, 1)]:
        losses = []
        for step in (1e-2, -1e-2):
            moved = copy.deepcopy(student)
            with torch.no_grad():
                moved.one.weight[index] += step
            losses.append(matched(FeatureMatching(weight=500.0), moved, teacher, X).item())
        slope = (losses[0] - losses[1]) / 2e-2
        assert weight.grad[index].item() == pytest.approx(slope, rel=0.05, abs=0.02)


def test_a_copy_of_the_teacher_has_nothing_to_learn() -> None:
    network = Stages(4)
    assert matched(FeatureMatching(), network, copy.deepcopy(network), X).item() == 0.0
    scaled = 3.0 * inner(network, X)[2]
    torch.testing.assert_close(attention_map(scaled), attention_map(scaled / 3.0))


def test_a_sliced_student_learns_where_its_original_looks() -> None:
    model = make_model("residual").eval()
    learner = ChannelPruning(
        model, EXAMPLE, make_data(96, 2), make_data(96, 3), round_to=4, precision="fp32"
    )
    plan = CompressionPlan({d.key: d.nearest(0.5) for d in learner.decisions})
    x = make_data(64, 9)[0][0]
    distances = {}
    for weight in (1e-6, 3000.0):
        student = learner.compress(plan)
        hook = FeatureMatching(weight=weight)
        config = TrainingConfig(epochs=6, learning_rate=0.02, precision="fp32")
        learner.finetune(student, make_data(256, 1), teacher=model, hooks=[hook], config=config)
        assert not any(m._forward_hooks for m in [*student.modules(), *model.modules()])
        distances[weight] = matched(FeatureMatching(), student, model, x).item()
    assert distances[3000.0] < 0.7 * distances[1e-6]


def test_a_resumed_training_has_the_same_bits_and_the_same_layers(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=3, learning_rate=0.01, precision="fp32")
    data = make_data(96, 1)
    straight, resumed, teacher = Stages(4), Stages(4), Stages(6, seed=1)
    train(straight, data, data, config, teacher=teacher, hooks=[FeatureMatching()])

    class Stop(FeatureMatching):
        def before_step(self, step: int) -> None:
            if step == 5:
                raise KeyboardInterrupt
            super().before_step(step)

    options = {"teacher": teacher, "checkpoint_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        train(Stages(4), data, data, config, hooks=[Stop()], **options)
    with pytest.raises(RunFolderError, match="'weight': 1000"):
        train(
            Stages(4), data, data, config, hooks=[FeatureMatching(weight=9.0)], resume=True,
            **options,
        )  # fmt: skip
    train(
        resumed, data, data, config, hooks=[FeatureMatching()], resume=True,
        **options,
    )  # fmt: skip
    for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_matched_is_rejected_by_name() -> None:
    data = make_data(32, 1)
    hook = FeatureMatching(["tale"])
    with pytest.raises(InputDataError, match=r"no layer 'tale' .* one, tail"):
        train(Stages(), data, data, FAST, teacher=Stages(), hooks=[hook])
    with pytest.raises(InputDataError, match="train with a teacher"):
        train(Stages(), data, data, FAST, hooks=[FeatureMatching()])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    student = Stages()
    with pytest.raises(InputDataError, match=r"resolution of the student's \(8 x 8, 4 x 4\)"):
        train(student, data, data, FAST, teacher=flat, hooks=[FeatureMatching()])
    assert not any(module._forward_hooks for module in student.modules())
    with pytest.raises(InputDataError, match="nothing of the resolution 8 x 8 of the layer 'one'"):
        train(student, data, data, FAST, teacher=flat, hooks=[FeatureMatching(["one"])])
    with pytest.raises(ValueError, match="weight above 0, got 0"):
        FeatureMatching(weight=0.0)
    with pytest.raises(ValueError, match="names of layers"):
        FeatureMatching([])


# ------------------------------------------------------------------ the teacher itself


def test_a_teacher_of_another_architecture_is_left_as_it_was() -> None:
    teacher = ResNet20(width=2)
    teacher.linear = nn.Linear(8, 4)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    student, alone = plain(), plain()
    alone.load_state_dict(student.state_dict())
    data = make_data(64, 1)
    train(student, data, data, FAST, teacher=teacher, hooks=[FeatureMatching()])
    train(alone, data, data, FAST)
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    assert not torch.equal(student[0].weight, alone[0].weight)


def test_a_teacher_teaches_in_evaluation_mode() -> None:
    class Fussy(Stages):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            assert not any(p.requires_grad for p in self.parameters())
            return super().forward(x)

    data = make_data(32, 1)
    train(Stages(), data, data, FAST, teacher=Fussy().train())


class Pair(Stages):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x


class NotANumber(Stages):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * math.nan


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Stages(classes=6), r"teacher answers with shape \[32, 6\], the student with \[32, 4\]"),
        (Stages(classes=2), "the classes of the teacher"),
        (nn.Identity(), "Expected the teacher to answer 32 images with logits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), "The teacher cannot take images"),
        (NotANumber(), "teacher with finite answers"),
    ],
)
def test_a_teacher_that_cannot_teach_is_rejected(teacher: nn.Module, message: str) -> None:
    data = make_data(32, 1)
    with pytest.raises(InputDataError, match=message):
        train(Stages(), data, data, FAST, teacher=teacher)


def test_resuming_with_another_teacher_is_rejected(tmp_path: Path) -> None:
    data = make_data(32, 1)
    train(Stages(), data, data, FAST, teacher=Stages(seed=1), checkpoint_dir=tmp_path)
    with pytest.raises(RunFolderError, match="teacher network was"):
        train(
            Stages(), data, data, FAST,
            teacher=Stages(seed=2), checkpoint_dir=tmp_path, resume=True,
        )  # fmt: skip


class Mixed(nn.Module):
    """A block with its linear layers on (N, H, W, C), as ConvNeXt has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(width)
            self.stem = nn.Conv2d(3, width, 2, 2)
            self.block = Block(width)
            self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 5)
        self.act = nn.ReLU()
        self.back = nn.Linear(5, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.wide(self.norm(self.conv(x).permute(0, 2, 3, 1))))
        return x + self.back(y).permute(0, 3, 1, 2)


def test_channels_on_another_axis_are_no_images() -> None:
    student, teacher = Mixed(6), Mixed(10)
    x = make_data(8, 1)[0][0]
    with torch.no_grad():
        ends = [net.block(net.stem(x)) for net in (student, teacher)]
    found = matched(FeatureMatching(weight=2.0), student, teacher, x)
    assert found.item() == pytest.approx(slow_distance(*ends), rel=1e-4)
    for name in ("block.wide", "block.act", "block.norm"):
        with pytest.raises(InputDataError, match=rf"layer '{name}' .* on another axis than 1"):
            matched(FeatureMatching([name]), Mixed(6), Mixed(10), x)
    alone = nn.Sequential(Moved(), nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(InputDataError, match=r"resolution of the student's \(nothing\)"):
        matched(FeatureMatching(), alone, copy.deepcopy(alone), x)


class Moved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)
