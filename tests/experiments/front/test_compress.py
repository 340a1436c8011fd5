"""``compress``: objects in, objects out; one pipeline with the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from amc_compress import Result, compress
from amc_compress.agents import LocalSearch
from amc_compress.cli import run
from amc_compress.front.columns import for_network
from amc_compress.front.options import options_from
from amc_compress.learners import ChannelPruning, evaluate
from amc_compress.learners.base import Learner
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.storage.trust import PURPOSE, UntrustedFolderError
from amc_env import CompressionPlan, RunFolderError
from amc_env.errors import ArgumentError, InputDataError

FEW: dict[str, Any] = {
    "budget": "macs=0.5", "agent": "random", "evaluations": 3, "round_to": 1, "quiet": True,
    "n_validation": 60,
}  # fmt: skip


class Net(nn.Module):
    """Tells which corner of an image is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(nn.functional.adaptive_avg_pool2d(self.body(x), 2).flatten(1))
        return logits


def network(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net()


def samples(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 2
    return images, labels


def batches(count: int = 60, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    images, labels = samples(count, seed)
    return list(zip(images.split(20), labels.split(20), strict=True))


def compressed(**options: Any) -> Result:
    return compress(network(), batches(), batches(seed=1), **{**FEW, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run that is never fine-tuned."""
    return compressed(out=tmp_path_factory.mktemp("front") / "run")


def test_result_holds_a_smaller_network_with_its_plan_costs_and_trials(finished: Result) -> None:
    images, _ = samples(5)
    assert finished.network(images).shape == (5, 4)
    kept = sum(p.numel() for p in finished.network.parameters())
    assert kept == finished.costs["params"] < finished.original_costs["params"]
    assert finished.cost_ratio["macs"] <= 0.5
    assert finished.score == pytest.approx(evaluate(finished.network, batches(seed=1)))
    assert finished.original_score == pytest.approx(evaluate(network(), batches(seed=1)))
    assert [trial.episode for trial in finished.trials] == [0, 1, 2]
    assert finished.plan in [trial.plan for trial in finished.trials]


def test_trials_are_a_table_with_a_column_per_parameter_and_cost(finished: Result) -> None:
    table = finished.trials.to_dataframe()
    assert list(table["number"]) == [0, 1, 2]
    assert {"score", "reward", "cost_macs", "cost_ratio_macs"} <= set(table.columns)
    assert {f"params_{key}" for key in finished.plan} <= set(table.columns)
    assert finished.trials[-1].score == table["score"].iloc[-1]


def test_result_shows_itself_in_a_line_in_html_and_as_a_figure(finished: Result) -> None:
    assert repr(finished).startswith("<Result of Net: ")
    assert "of the macs" in repr(finished)
    assert "accuracy" in repr(finished)
    assert len(repr(finished)) < 200
    assert finished._repr_html_().count("<tr>") > 2
    left, right = finished.plot().axes
    assert len(left.collections[0].get_offsets()) == 3
    assert right.get_ylabel() == "accuracy"


def test_the_same_call_resumes_to_the_same_result(tmp_path: Path) -> None:
    first = compressed(out=tmp_path / "run")
    trials = (tmp_path / "run" / "trials.jsonl").read_bytes()
    again = compressed(out=tmp_path / "run", resume=True)
    assert again.plan == first.plan
    assert (tmp_path / "run" / "trials.jsonl").read_bytes() == trials
    with pytest.raises(
        RunFolderError,
        match="not empty; add resume=True to continue the run in it, or choose another out",
    ):
        compressed(out=tmp_path / "run")


@pytest.mark.parametrize(
    ("others", "name"),
    [
        ({"model": network(1)}, "network"),
        ({"train": batches(seed=2)}, "train data"),
        ({"validation": batches(40, seed=1)}, "validation data"),
    ],
)
def test_other_content_is_not_resumed(finished: Result, others: dict[str, Any], name: str) -> None:
    given = {"model": network(), "train": batches(), "validation": batches(seed=1), **others}
    with pytest.raises(RunFolderError, match=f"began with another {name}: expected the same"):
        compress(**given, **FEW, out=finished.out, resume=True)


def test_another_search_knows_what_this_one_has_evaluated(finished: Result) -> None:
    other = compressed(warm_start=finished.out, agent="local", evaluations=1)
    assert max(trial.reward for trial in finished.trials) <= max(
        other.score, *(trial.reward for trial in other.trials)
    )
    with pytest.raises(RunFolderError, match="plans with another validation data; begin with"):
        compress(network(), batches(), batches(seed=4), **FEW, warm_start=finished.out)


def test_other_options_are_not_resumed(finished: Result) -> None:
    with pytest.raises(RunFolderError, match="options: seed is 0 there and 1 now"):
        compressed(out=finished.out, resume=True, seed=1)


def test_folder_is_fine_tuned_exported_evaluated_and_reported(tmp_path: Path) -> None:
    result = compressed(out=tmp_path / "run", test=batches(seed=3))
    assert result.finetune(epochs=2, learning_rate=0.05) is result
    weights = (result.out / "model.safetensors").read_bytes()
    result.finetune(epochs=2, learning_rate=0.05)  # done already
    assert (result.out / "model.safetensors").read_bytes() == weights
    assert result.score == pytest.approx(evaluate(result.network, batches(seed=1)))
    summary = result.evaluate()
    assert summary["compressed"]["score"] == pytest.approx(
        evaluate(result.network, batches(seed=3))
    )
    page = result.report(tmp_path / "page.html").read_text()
    assert "Net on loaders: compressed" in page
    assert "compress(Net, train, validation, " in page
    assert list((result.out / "tensorboard" / "search").iterdir())
    config = json.loads((result.out / "config.json").read_text())
    assert set(config["data"]["content"]) == {
        "network", "task", "train data", "validation data", "test data",
    }  # fmt: skip


def test_scores_are_of_the_same_samples_before_and_after_fine_tuning(tmp_path: Path) -> None:
    """A search on 20 of 60 samples; a fine-tuning is evaluated on all."""
    result, all_of_them = compressed(out=tmp_path / "run", n_validation=20), batches(seed=1)
    whole = evaluate(network(), all_of_them, precision="fp32")
    assert {round(20 * score, 6) % 1 for score in (result.score, result.original_score)} == {0.0}
    assert result.original_score != whole  # else this says nothing
    start = evaluate(result.network, all_of_them, precision="fp32")
    result.finetune(epochs=1, learning_rate=100.0)  # which ruins it
    assert result.original_score == whole
    assert result.score >= start
    validation = result.evaluate()["validation"]
    assert validation["original"]["accuracy"] == whole
    assert validation["compressed"]["accuracy"] == result.score
    note = f"{whole:.2%} on all, which fine-tuned networks are evaluated on"
    assert note in result.report().read_text()


@pytest.mark.slow
def test_other_training_batches_fine_tune_anew() -> None:
    result = compressed().finetune(epochs=1)
    first = result.network.state_dict()["head.weight"]
    result.finetune(batches(seed=5), epochs=1)
    assert not torch.equal(first, result.network.state_dict()["head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["channels", "uniform"])
def test_export_writes_what_the_suffix_says(tmp_path: Path, learner: str) -> None:
    budget = {"uniform": "mean_bits=6/32"}.get(learner, "macs=0.5")
    options = {k: v for k, v in FEW.items() if k != "round_to" or learner == "channels"}
    result = compress(
        network(), batches(), batches(seed=1), **{**options, "learner": learner, "budget": budget}
    )
    assert result.export(tmp_path / "small.onnx").stat().st_size > 1000
    assert result.export(tmp_path / "small.safetensors").exists()
    if learner == "uniform":
        assert result.export(tmp_path / "small.packed").exists()
    else:
        with pytest.raises(RunFolderError, match=r"no model\.packed"):
            result.export(tmp_path / "small.packed")
    with pytest.raises(ArgumentError, match=r"\.onnx, \.packed, \.safetensors"):
        result.export("small.pt")


@pytest.mark.slow
def test_loaders_and_data_sets_are_batched_alike() -> None:
    loader = DataLoader(TensorDataset(*samples()), batch_size=20)
    validation = TensorDataset(*samples(seed=1))
    result = compress(network(), loader, validation, **FEW, batch_size=20)
    assert result.plan == compressed(batch_size=20).plan
    assert result.score == compressed().score


class Table:
    """What ``datasets.Dataset`` is to a loader: rows by index, with named columns."""

    __module__ = "datasets.arrow_dataset"

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"picture": self.images[index].tolist(), "label": int(self.labels[index])}


def test_rows_with_named_columns_feed_the_network() -> None:
    pixels, labels = samples()
    flat = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), network())
    table = Table(pixels.flatten(1), labels)
    result = compress(flat, table, table, **FEW)
    assert result.network(pixels.flatten(1)).shape == (60, 4)


def test_nested_lists_of_numbers_are_tensors_and_streams_are_named() -> None:
    pixels, labels = samples(3)
    row = for_network(Table(pixels, labels), "train", network())[2]
    assert torch.equal(row[0], pixels[2])
    ragged = Table(pixels, labels)
    ragged.__class__ = type("Ragged", (Table,), {"__getitem__": lambda *_: {"x": [[1], [2, 3]]}})
    assert for_network(ragged, "train", network())[0] == {"x": [[1], [2, 3]]}
    streamed = type("Streamed", (), {"__module__": "datasets.iterable_dataset", "__iter__": iter})
    with pytest.raises(InputDataError, match="a data set that is streamed, sample by sample: wrap"):
        compress(network(), streamed(), batches(), **FEW)


@pytest.mark.slow
def test_agent_and_learner_are_given_as_objects(tmp_path: Path) -> None:
    agent = LocalSearch(finalists=2)
    result = compressed(agent=agent, learner=ChannelPruning, out=tmp_path / "run")
    assert RunFolder.open(result.out, uses=()).config.agent.startswith("local(")
    prepared = ChannelPruning(
        network(), samples()[0][:1], batches(), batches(seed=1), round_to=1, n_validation=60
    )
    other = compressed(agent=LocalSearch(finalists=2), learner=prepared)
    assert other.plan == result.plan
    with pytest.raises(RunFolderError, match="agent is 'local"):
        compressed(agent=LocalSearch(finalists=1), out=tmp_path / "run", resume=True)


class Counting(ChannelPruning):
    """A learner of the user's own: the one it derives from, with a say in every evaluation."""

    evaluations = 0

    def evaluate(self, plan: CompressionPlan) -> float:
        Counting.evaluations += 1
        return super().evaluate(plan)


def test_a_learner_class_of_ones_own_takes_the_place_of_the_one_it_derives_from(
    finished: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "evaluations", 0)
    result = compressed(learner=Counting, out=tmp_path / "run")
    assert Counting.evaluations >= len(result.trials) == 3
    config = RunFolder.open(result.out, uses=()).config
    assert (config.learner, config.learner_class) == ("channels", f"{__name__}:Counting")
    with pytest.raises(UntrustedFolderError, match=f"the learner_class '{__name__}:Counting'"):
        RunFolder.open(result.out, uses=PURPOSE)
    with pytest.raises(RunFolderError, match="learner_class"):
        compressed(out=tmp_path / "run", resume=True)
    assert result.plan == finished.plan


def test_learners_that_no_run_knows_are_rejected_in_a_sentence() -> None:
    class Inner(ChannelPruning):
        pass

    with pytest.raises(ArgumentError, match=r"at the top of a module, got .*Inner: a run is resu"):
        compressed(learner=Inner)
    with pytest.raises(ArgumentError, match=r"derives from one of ChannelPruning, .*, got Foreign"):
        compressed(learner=Foreign)
    with pytest.raises(InputDataError, match="to derive from UniformQuantization, the class of "):
        compressed(
            learner="uniform", learner_class=f"{__name__}:Counting", round_to=8,
            budget="mean_bits=6/32",
        )  # fmt: skip


class Foreign(Learner):
    """What no run can train, pack and export."""


@pytest.mark.slow
def test_another_network_teaches() -> None:
    result = compressed(teacher=network(7)).finetune(epochs=1)
    alone = compressed(teacher="none").finetune(epochs=1)
    assert not torch.equal(result.network.head.weight, alone.network.head.weight)


def test_values_are_as_in_python_or_as_on_the_command_line() -> None:
    assert options_from({"weight_bits": 8, "round_to": "4"}) == {"weight_bits": "8", "round_to": 4}
    with pytest.raises(ValueError, match="Expected round_to to be a whole number, got 'four'"):
        compressed(round_to="four")
    with pytest.raises(ArgumentError, match="higher_is_better or lower_is_better, got both"):
        compressed(higher_is_better=True, lower_is_better=True)


def test_several_heads_have_a_metric_and_a_loss_of_their_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def first(outputs: Any, targets: Any) -> Tensor:
        return (outputs[0].argmax(1) == targets[0]).double().mean()

    def both(outputs: Any, targets: Any) -> Tensor:
        pairs = zip(outputs, targets, strict=True)
        return torch.stack([nn.functional.cross_entropy(*pair) for pair in pairs]).sum()

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.two = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(self.body(x).relu()), self.two(self.body(x).relu())

    generator = torch.Generator().manual_seed(0)
    data = [
        (
            torch.randn(16, 6, generator=generator),
            tuple(torch.randint(n, (16,), generator=generator) for n in (3, 2)),
        )
        for _ in range(3)
    ]
    net = Heads().eval()
    result = compress(
        net, data, data, budget="macs=0.6", metric=first, loss=both, higher_is_better=True,
        evaluations=2, agent="random", round_to=4,
    )  # fmt: skip
    assert "Taking the task 'custom', since metric and loss are given" in capsys.readouterr().err
    with torch.no_grad():
        right = [float(first(result.network(x), y)) for x, y in data]
    assert result.score == pytest.approx(sum(right) / 3)
    assert result.finetune(epochs=1).score >= result.score - 1e-6


def test_mistakes_are_named_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="Expected round_to >= 1, got 0"):
        compressed(round_to=0)
    with pytest.raises(ArgumentError, match="'round_to' is settled when search begins"):
        Result.finetune(None, round_to=4)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="Unknown option 'evaluation'; did you mean 'evaluat"):
        compressed(evaluation=5)
    with pytest.raises(ArgumentError, match="'weights' is the command line's: here model is an o"):
        compressed(weights="net.pt")
    with pytest.raises(InputDataError, match="Expected train as a loader that can be read again"):
        compress(network(), iter(batches()), batches(), **FEW)
    with pytest.raises(InputDataError, match="at least one batch in validation, got none"):
        compress(network(), batches(), [], **FEW)
    with pytest.raises(InputDataError, match="Expected train as a DataLoader, a list of batches"):
        compress(network(), "digits", batches(), **FEW)


def test_command_line_reports_a_run_of_objects_but_cannot_continue_it(
    finished: Result, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["finetune", str(finished.out)]) == 2
    assert "is one of Python objects, which a folder does not hold" in capsys.readouterr().err
