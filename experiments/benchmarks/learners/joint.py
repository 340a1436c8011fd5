r"""Channels and bits decided together against one after the other, at equal episodes and budget.

joint      one search over all decisions, interleaved by depth, under the whole budget
two-stage  half of the episodes decide the channels, every layer at its most bits (next to float);
           the other half decide the bits of the network that won
uniform    no search: every decision takes the ratio that spends what is left

All three are searches of one learner, the two stages with part of its decisions fixed
(``FixedDecisions``), so candidates are built and repaired in the same way, and the
same evaluator has the last word: the proxy accuracy of the finished plan on all validation images.
The first stage meets the whole budget too, with bits counted at their fewest: a bound on bytes asks
of it no more than that the second stage can still meet it. Both ways have the agent's best few
plans evaluated again on all validation images, the two-stage way after each stage; that is not
counted.

Rows are appended to ``--out`` as they come, so an interrupted run continues where it stopped::

    python -m amc_compress.benchmarks.learners.joint --model resnet20 --data DIR --weights FILE \
        --budget macs=0.5,bytes=0.12 --episodes 200 --seeds 3 --agent ddpg --out runs/joint.jsonl
    python -m amc_compress.benchmarks.learners.joint --episodes 6 --seeds 1 --round-to 2
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from amc_compress.agents import SearchResult, make_agent
from amc_compress.benchmarks.bench import append_rows, markdown, read_rows, spread, start
from amc_compress.benchmarks.learners.fixed_decisions import FixedDecisions
from amc_compress.config.bit_widths import as_choice, parse_bits
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.tasks import make_joint
from amc_env import Budget, CompressionEnv, CompressionPlan
from amc_env.plan import DecisionKind

WAYS = ("joint", "two-stage", "uniform")


@dataclass(frozen=True)
class Settings:
    """What a row depends on besides way and seed."""

    model: str
    data: str
    weights: str | None
    budget: str
    agent: str
    episodes: int
    quantizer: str
    weight_bits: str
    activation_bits: str
    round_to: int
    images: int
    precision: str

    def environment(self) -> CompressionEnv:
        """Prepares the learner, once for all rows."""
        return make_joint(
            model=self.model,
            data=self.data,
            weights=self.weights,
            budget=self.budget,
            quantizer=self.quantizer,
            weight_bits=as_choice(parse_bits("--weight-bits", self.weight_bits)),
            activation_bits=as_choice(parse_bits("--activation-bits", self.activation_bits)),
            round_to=self.round_to,
            n_validation=self.images,
            precision=self.precision,
        )


@dataclass(frozen=True)
class Row:
    """One search and what came of it.

    Args:
        way: One of ``WAYS``.
        seed: Of the agent.
        settings: As text, so that rows of other settings are told apart.
        accuracy: Of the final plan on all validation images, in [0, 1].
        cost_ratio: Of the final plan.
        episodes: Evaluated plans per stage.
        cpu_seconds: Of all stages.
        plan: The final plan.
    """

    way: str
    seed: int
    settings: str
    accuracy: float
    cost_ratio: dict[str, float]
    episodes: list[int]
    cpu_seconds: float
    plan: dict[str, float]


def search_jointly(
    env: CompressionEnv, agent: str, episodes: int, seed: int
) -> tuple[CompressionPlan, list[SearchResult]]:
    """Decides everything in one search."""
    fresh = CompressionEnv(_learner(env), env.budget)
    result = make_agent(agent).search(fresh, episodes, seed)
    return result.plan, [result]


def search_in_stages(
    env: CompressionEnv, agent: str, episodes: int, seed: int
) -> tuple[CompressionPlan, list[SearchResult]]:
    """Decides the channels first, then the bits of the network that won."""
    learner = _learner(env)
    later = [d for d in learner.decisions if d.kind is not DecisionKind.KEEP_RATIO]
    most = {d.key: d.choices[-1] for d in later}
    fewest = {d.key: d.choices[0] for d in later}
    channels = FixedDecisions(learner, most, assumed=fewest)
    first = make_agent(agent).search(
        CompressionEnv(channels, env.budget), max(1, episodes // 2), seed
    )
    bits = FixedDecisions(learner, dict(first.plan))
    second = make_agent(agent).search(
        CompressionEnv(bits, env.budget), max(1, episodes - episodes // 2), seed
    )
    return bits.whole(second.plan), [first, second]


def run(env: CompressionEnv, settings: Settings, way: str, seed: int) -> Row:
    """Makes one row."""
    start = time.process_time()
    results: list[SearchResult] = []
    if way == "uniform":
        plan = env.uniform_plan()
    else:
        search = search_jointly if way == "joint" else search_in_stages
        plan, results = search(env, settings.agent, settings.episodes, seed)
    seconds = time.process_time() - start
    ratio = env.cost_ratio(plan)
    if not env.budget.is_met(ratio):
        raise RuntimeError(f"The {way} search ended outside the budget {env.budget}: {ratio}.")
    accuracy = _learner(env).evaluate_full(plan)
    episodes = [len(result.trials) for result in results]
    return Row(way, seed, _key(settings), accuracy, ratio, episodes, seconds, dict(plan))


def run_all(settings: Settings, seeds: range, ways: list[str], out: Path | None) -> list[Row]:
    """Makes the rows that the file does not hold yet, seed by seed."""
    done = {(row.way, row.seed): row for row in _read(out, _key(settings))}
    wanted = [(way, seed) for seed in seeds for way in ways if way != "uniform" or seed == seeds[0]]
    env = None
    for way, seed in wanted:
        if (way, seed) in done:
            continue
        env = env or settings.environment()
        row = done[way, seed] = run(env, settings, way, seed)
        print(f"{way} {seed}: {row.accuracy:.4f}, {row.cpu_seconds:.0f} CPU-s", flush=True)
        append_rows(out, [asdict(row)])
    return [done[pair] for pair in wanted]


def table(rows: list[Row], costs: list[str]) -> str:
    """Returns a Markdown table, one line per way: mean and sample deviation over the seeds."""
    lines = []
    for way in dict.fromkeys(row.way for row in rows):
        mine = [row for row in rows if row.way == way]
        evaluated = sum(sum(row.episodes) for row in mine)
        lines.append(
            [
                way,
                spread([100.0 * row.accuracy for row in mine], 2),
                *(f"{np.mean([row.cost_ratio[cost] for row in mine]):.4f}" for cost in costs),
                f"{sum(row.cpu_seconds for row in mine) / evaluated:.2f}" if evaluated else "",
                str(len(mine)),
            ]
        )
    header = ["way", "accuracy, all validation images", *costs, "CPU-s/episode", "seeds"]
    text = markdown(header, lines)
    by = {(row.way, row.seed): row.accuracy for row in rows}
    pairs = [
        100.0 * (by["joint", seed] - by["two-stage", seed])
        for way, seed in by
        if way == "joint" and ("two-stage", seed) in by
    ]
    if pairs:
        text += f"\n\njoint minus two-stage, seed by seed, in points: {spread(pairs, 2)}"
    return text


def _learner(env: CompressionEnv) -> JointCompression:
    assert isinstance(env.learner, JointCompression)  # noqa: S101
    return env.learner


def _key(settings: Settings) -> str:
    return json.dumps(asdict(settings), sort_keys=True)


def _read(out: Path | None, settings: str) -> list[Row]:
    """Rows of these settings."""
    return [Row(**fields) for fields in read_rows(out) if fields["settings"] == settings]


def check_budget(text: str) -> Budget:
    """Reads the budget.

    Raises:
        typer.BadParameter: If it has another form, or a lower bound: a first stage cannot tell
            whether the second will spend enough.
    """
    try:
        budget = Budget.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if budget.limits or any(lower > 0.0 for lower, _ in budget.bounds.values()):
        raise typer.BadParameter(
            f"Expected upper bounds only, as shares, got {text!r}: deciding in stages "
            f"cannot promise a lower."
        )
    return budget


def main(
    model: Annotated[str, typer.Option(help="Name in the zoo or package.module:factory.")] = (
        "digitsnet"
    ),
    data: Annotated[str, typer.Option(help="digits, or a parquet folder.")] = "digits",
    weights: Annotated[str | None, typer.Option(help="safetensors or state_dict.")] = None,
    budget: Annotated[str, typer.Option(help="Upper bounds.")] = "macs=0.5,bytes=0.15",
    agent: Annotated[str, typer.Option(help="As for amc search.")] = "ddpg",
    episodes: Annotated[int, typer.Option(help="Of each way, all stages together.", min=2)] = 200,
    seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    quantizer: Annotated[str, typer.Option(help="uniform or codebook.")] = "uniform",
    weight_bits: Annotated[str, typer.Option(help="To choose from.")] = "2-8",
    activation_bits: Annotated[str, typer.Option(help="To choose from; one is fixed.")] = "8",
    round_to: Annotated[int, typer.Option(help="Kept channels are multiples of this.")] = 8,
    images: Annotated[int, typer.Option(help="Validation images of an episode.")] = 3000,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    ways: Annotated[str, typer.Option(help="Some of joint,two-stage,uniform.")] = ",".join(WAYS),
    out: Annotated[Path | None, typer.Option(help="Rows are kept here and read back.")] = None,
) -> None:
    """Prints the table."""
    costs = list(check_budget(budget).bounds)
    chosen = ways.split(",")
    if unknown := sorted(set(chosen) - set(WAYS)):
        raise typer.BadParameter(f"Unknown ways {unknown}; expected some of {WAYS}.")
    settings = Settings(
        model, data, weights, budget, agent, episodes, quantizer, weight_bits, activation_bits,
        round_to, images, precision,
    )  # fmt: skip
    rows = run_all(settings, range(first_seed, first_seed + seeds), chosen, out)
    print(table(rows, costs))


if __name__ == "__main__":
    start(main)
