"""``compress`` for tasks, inputs, metrics and losses of any kind; one path for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc_compress import Result, compress, load_compressed
from amc_compress.learners import evaluate
from amc_env import Metric, RunFolderError

FEW: dict[str, Any] = {
    "agent": "random", "evaluations": 2, "round_to": 1, "n_validation": 24, "quiet": True,
}  # fmt: skip


class Tagger(nn.Module):
    """Token ids and a mask, by name, to a class of the text; answers as ``transformers`` do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        seen = attention_mask.unsqueeze(2).float()
        mean = (self.table(input_ids) * seen).sum(1) / seen.sum(1)
        return {"logits": self.head(torch.relu(self.hidden(mean)))}


class Masks(nn.Module):
    """An image to a class of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.body(image)
        return logits


def made(network: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network()


def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def tokens(seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 20, (24, 5), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 3:] = 0
    labels = ids[:, 0] % 3
    return [
        {"input_ids": i, "attention_mask": m, "labels": y}
        for i, m, y in zip(ids.split(8), mask.split(8), labels.split(8), strict=True)
    ]


def numbers(seed: int) -> list[Any]:
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(seed))
    return list(zip(x.split(8), (x[:, :2] * 2).split(8), strict=True))


def masks(seed: int) -> list[Any]:
    x = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return list(zip(x.split(8), ((x > 0).long() + (x > 1))[:, 0].split(8), strict=True))


def compressed(network: nn.Module, batches: Callable[[int], list[Any]], **options: Any) -> Result:
    return compress(network, batches(0), batches(1), **{"budget": "macs=0.6", **FEW, **options})


CASES = {
    "classification": (Tagger, tokens, "accuracy"),
    "regression": (regressor, numbers, "mse"),
    "segmentation": (Masks, masks, "mean_iou"),
}


@pytest.mark.parametrize(
    "task",
    ["classification", "regression", pytest.param("segmentation", marks=pytest.mark.slow)],
)
def test_any_task_is_searched_trained_evaluated_and_reported(tmp_path: Any, task: str) -> None:
    make, batches, metric = CASES[task]
    network = made(make)
    result = compressed(network, batches, task=task, test=batches(2), out=tmp_path / "run")
    assert result.metric == metric
    assert result.cost_ratio["macs"] <= 0.6
    assert result.original_score == pytest.approx(evaluate(network, batches(1), task=task))
    assert result.score == pytest.approx(evaluate(result.network, batches(1), task=task))
    result.finetune(epochs=2, learning_rate=0.01)
    assert result.score == pytest.approx(evaluate(result.network, batches(1), task=task))
    assert result.original_score == pytest.approx(evaluate(network, batches(1), task=task))
    summary = result.evaluate()
    assert summary["compressed"]["score"] == pytest.approx(
        evaluate(result.network, batches(2), task=task)
    )
    assert Metric(metric).title in result.report().read_text()
    again = load_compressed(tmp_path / "run", model=made(make))
    assert evaluate(again, batches(1), task=task) == pytest.approx(result.score)
    same = compressed(
        network, batches, task=task, test=batches(2), out=tmp_path / "run", resume=True
    )
    assert same.plan == result.plan
    assert Metric(metric).title in repr(same)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "learner"),
    [
        ("classification", "channels"),
        ("classification", "uniform"),
        ("regression", "joint"),
        ("segmentation", "sparse"),
        ("segmentation", "uniform"),
    ],
)
def test_any_task_is_exported_by_any_learner(tmp_path: Any, task: str, learner: str) -> None:
    make, batches, _ = CASES[task]
    budget = {
        "channels": "macs=0.6", "uniform": "mean_bits=6/32", "sparse": "density=0.5",
        "joint": "macs=0.7,bytes=0.9",
    }[learner]  # fmt: skip
    options: dict[str, Any] = {} if learner in ("channels", "joint") else {"round_to": 8}
    if learner == "uniform":  # the first and the last layer are all there are
        options["first_last_bits"] = None
    result = compressed(made(make), batches, task=task, learner=learner, budget=budget, **options)
    result.finetune(epochs=1)
    assert result.export(tmp_path / "small.onnx").stat().st_size > 500
    if learner != "channels":
        assert result.export(tmp_path / "small.packed").exists()


def test_task_is_guessed_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    result = compressed(made(Masks), masks, quiet=False)
    assert result.metric == "mean_iou"
    assert "Taking the task 'segmentation', since the first batch has" in capsys.readouterr().err


def test_without_targets_the_original_is_agreed_with() -> None:
    def unlabelled(seed: int) -> list[Any]:
        return [x for x, _ in numbers(seed)]

    network = made(regressor)
    result = compressed(network, unlabelled)
    assert result.original_score == 1.0
    assert result.finetune(epochs=2, learning_rate=0.01).score <= 1.0


def largest_error(outputs: Tensor, targets: Tensor) -> float:
    """A metric of which less is better."""
    return float((outputs - targets).detach().abs().max())


def smooth_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.smooth_l1_loss(outputs, targets)


def test_metric_and_loss_of_ones_own(tmp_path: Any) -> None:
    own: dict[str, Any] = {
        "task": "regression", "metric": largest_error, "lower_is_better": True,
        "loss": smooth_loss, "out": tmp_path / "run",
    }  # fmt: skip
    network = made(regressor)
    result = compressed(network, numbers, **own)
    assert result.metric == "largest_error"
    worst = max(largest_error(result.network(x), y) for x, y in numbers(1))
    assert result.score == pytest.approx(-worst, rel=1e-4)
    page = result.finetune(epochs=1).report().read_text()
    assert "validation largest error (was " in page
    assert "as there are no test data" in page
    with pytest.raises(RunFolderError, match="began with another task"):
        compressed(
            network, numbers, **{**own, "metric": None, "lower_is_better": False}, resume=True
        )


class Detector(nn.Module):
    """A body with loops around it that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.head(self.backbone(row[None])) for row in x]
        return torch.cat(rows) * (1.0 if float(x.sum()) > -1e9 else 0.0)


def test_a_part_is_compressed_alone() -> None:
    result = compressed(
        made(Detector), numbers, task="regression", part="backbone", budget="macs=0.8"
    )
    assert result.network.backbone[0].out_features < 16  # type: ignore[union-attr, index]
    assert result.network.head.in_features == 8  # type: ignore[union-attr]


class Guarded(nn.Module):
    """A body of tensors, then Python that looks at numbers, which no ONNX file can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.head(self.body(x))
        return torch.stack([row if float(row.detach().sum()) < 1e9 else -row for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize(("learner", "budget"), [("channels", "macs=0.7"), ("uniform", None)])
def test_a_part_is_exported_where_the_whole_cannot_be(
    tmp_path: Any, learner: str, budget: str | None
) -> None:
    ort = pytest.importorskip("onnxruntime")
    options: dict[str, Any] = {} if learner == "channels" else {"round_to": 8}
    if learner == "uniform":
        options |= {"first_last_bits": None, "weight_bits": "8"}
    result = compressed(
        made(Guarded), numbers, task="regression", part="body", learner=learner, budget=budget,
        out=tmp_path / "run", **options,
    )  # fmt: skip
    result.finetune(epochs=1)
    file = result.export(tmp_path / "body.onnx")
    x = numbers(2)[0][0]
    session = ort.InferenceSession(str(file))
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = result.network.body(x)  # type: ignore[operator, union-attr]
    assert torch.from_numpy(found).shape == expected.shape
    assert torch.from_numpy(found).allclose(expected, atol=1e-4 if learner == "channels" else 0.1)
    facts = result._folder.results("export")
    assert facts["part"] == "body"
    assert facts["note"].startswith("The files hold 'body' alone: ")
    assert "part=..." not in facts["note"]  # advice that has been followed
    assert set(facts["latency_ms"]) == {"original", "compressed"}
    assert "alone: " in result.report().read_text()


@pytest.mark.slow
def test_a_language_model_is_searched_by_its_tokens_without_labels(tmp_path: Any) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 20))

    def blocks(seed: int) -> list[Any]:
        generator = torch.Generator().manual_seed(seed)
        return list(torch.randint(0, 20, (24, 6), generator=generator).split(8))

    options: dict[str, Any] = {"task": "token-distribution", "parallel": 2, "evaluations": 4}
    one = compressed(made(network), blocks, **options)
    result = compressed(made(network), blocks, **options, workers=2, out=tmp_path / "run")
    assert result.metric == "kl_divergence"
    assert result.original_score == pytest.approx(0.0, abs=1e-5)
    assert (result.plan, result.score) == (one.plan, one.score)
    before = result.score
    result.finetune(epochs=3, learning_rate=0.05)
    assert before < result.score < 0.0
    again = compressed(made(network), blocks, **options, out=tmp_path / "run", resume=True)
    assert (again.plan, again.score) == (result.plan, result.score)
