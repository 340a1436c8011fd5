r"""Benchmark of policies that are reused after their search.

``--table budgets``: plans for several budgets, either from one search with the budget drawn anew
each episode (``OnePolicy``), or from a search per budget, at equally many episodes in all::

    python -m amc_compress.benchmarks.agents.kept_policies \
        --table budgets --episodes 300 --seeds 5 \
        --out runs/budgets.jsonl

``--table transfer``: a policy is trained on one network and used on another, as it is (one episode)
and with some episodes of learning, compared with searches that begin there with nothing::

    python -m amc_compress.benchmarks.agents.kept_policies --table transfer --data DIR \
        --weights resnet20=FILE --weights resnet56=FILE --episodes 20 --seeds 3 \
        --out runs/transfer.jsonl

Scores are 0 for the uniform plan of the same budget and 1 for the best plan that any row found
there. Rows are appended to ``--out`` as they come, each with all settings but the number of seeds,
so an interrupted run resumes where it stopped; a run with other settings ignores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from amc_compress.agents import DDPG, OnePolicy, Trial, make_agent
from amc_compress.benchmarks.bench import KeptRows, markdown, spread, start
from amc_compress.commands.compare import places_of
from amc_compress.comparison.tasks import TASKS, ComparisonTask, Places, build_env, origin_of
from amc_env import Budget, CompressionEnv

BUDGETS = ("macs=0.2", "macs=0.3", "macs=0.4", "macs=0.5", "macs=0.6")

FROM_NOTHING = ("ddpg", "ddpg-one-shot", "local", "random")
"""Agents without a policy to begin with: once per budget, or on the second network."""


@dataclass(frozen=True)
class Row:
    """What one way found for one budget.

    Args:
        way: What searched.
        problem: Network and budget.
        seed: Of the search.
        episodes: Evaluations spent, on all budgets together.
        uniform: Reward of the uniform plan.
        reward: Best reward within the budget.
    """

    way: str
    problem: str
    seed: int
    episodes: int
    uniform: float
    reward: float


class Rows:
    """Rows of some settings, and the file that they are kept in; what is there is not made again.

    Args:
        path: The file; None keeps nothing. It may hold rows of other settings, which stay there.
        settings: All that rows depend on but way and seed.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._kept = KeptRows(path, settings)

    @property
    def rows(self) -> list[Row]:
        """All of them, those of the file first."""
        return [Row(**fields) for fields in self._kept.rows]

    def ask(self, way: str, seed: int, make: Callable[[], list[Row]]) -> None:
        """Makes the rows of a way and a seed, if they are not there."""
        if not any((r.way, r.seed) == (way, seed) for r in self.rows):
            self._kept.add(map(asdict, make()))


def one_policy(env: CompressionEnv, episodes: int, seed: int) -> list[Row]:
    """Searches once for all budgets."""
    front = OnePolicy().search(env, BUDGETS, episodes, seed)
    found = []
    for budget, best in front.best.items():
        uniform = front.uniform[budget].reward
        last = front.policy[budget].reward
        found.append(Row("one policy", str(budget), seed, episodes, uniform, best.reward))
        found.append(Row("one policy, last word", str(budget), seed, episodes, uniform, last))
    return found


def separate(env: CompressionEnv, name: str, episodes: int, seed: int) -> list[Row]:
    """Searches once for each budget, with an equal share of the episodes.

    What was found for a smaller budget may win a larger one, as in a search for all of them.
    """
    uniform: dict[str, float] = {}
    trials: list[Trial] = []
    for text in BUDGETS:
        env.set_budget(text)
        uniform[text] = env.evaluate(env.uniform_plan()).reward
        trials += make_agent(name, finalists=0).search(env, episodes // len(BUDGETS), seed).trials
    found = []
    for text in BUDGETS:
        budget = Budget.parse(text)
        best = max(t.reward for t in trials if budget.is_met(t.cost_ratio))
        found.append(Row(name, text, seed, episodes, uniform[text], best))
    return found


def carried_over(
    source: CompressionEnv, target: CompressionEnv, problem: str, training: int, episodes: int,
    seed: int,
) -> list[Row]:  # fmt: skip
    """Trains a policy on one network, and begins a search on another with it."""
    uniform = target.evaluate(target.uniform_plan()).reward
    with TemporaryDirectory() as folder:
        file = Path(folder) / "policy.safetensors"
        agent = DDPG(finalists=0)
        agent.search(source, training, seed)
        agent.save_policy(file)
        trials = DDPG(finalists=0, policy=str(file)).search(target, episodes, seed).trials
    bare = trials[1].reward  # behind the uniform plan, before anything is learned
    best = max(trial.reward for trial in trials)
    return [
        Row("carried over", problem, seed, episodes, uniform, best),
        Row("carried over, as it is", problem, seed, episodes, uniform, bare),
    ]


def from_nothing(
    target: CompressionEnv, name: str, problem: str, episodes: int, seed: int
) -> list[Row]:
    """Searches on the second network without a policy."""
    uniform = target.evaluate(target.uniform_plan()).reward
    best = make_agent(name, finalists=0).search(target, episodes, seed).reward
    return [Row(name, problem, seed, episodes, uniform, best)]


def table(rows: list[Row]) -> str:
    """Returns a Markdown table: mean score and reward over seeds, per way and problem."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    best = {p: max(r.reward for r in rows if r.problem == p) for p in problems}

    def score(row: Row) -> float:
        room = best[row.problem] - row.uniform
        return (row.reward - row.uniform) / room if room > 0 else 0.0

    lines = []
    for way in dict.fromkeys(row.way for row in rows):
        mine = [row for row in rows if row.way == way]
        seeds = sorted({row.seed for row in mine})
        cells = [spread([r.reward for r in mine if r.problem == p], 4) for p in problems]
        scores = [float(np.mean([score(r) for r in mine if r.seed == s])) for s in seeds]
        lines.append([way, *cells, spread(scores, 2), len(seeds)])
    uniform = [spread([next(r.uniform for r in rows if r.problem == p)], 4) for p in problems]
    lines.append(["uniform", *uniform, "0.00", ""])
    return markdown(["way", *problems, "score", "seeds"], lines)


def _task(model: str, places: Places) -> ComparisonTask:
    if places.data is None:
        return TASKS["digits-channels"]
    return replace(TASKS["resnet20-channels"], model=model)


def _origin(model: str, places: Places) -> str:
    """Network, its weights' checksum and the learner's options."""
    return origin_of(_task(model, places), places)


def _environment(model: str, places: Places, budget: str, images: int) -> CompressionEnv:
    """Builds a network's task as comparisons have it, for another budget."""
    options = {} if places.data is None else {"n_validation": images}
    return build_env(_task(model, places), places, budget=budget, **options)


def main(
    table_name: Annotated[str, typer.Option("--table", help="budgets or transfer")] = "budgets",
    data: Annotated[Path | None, typer.Option(help="CIFAR-10; without: the digits")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="MODEL=FILE; repeats")] = None,
    model: Annotated[str, typer.Option(help="budgets: the network")] = "resnet20",
    source: Annotated[str, typer.Option(help="transfer: trained here")] = "resnet20",
    target: Annotated[str, typer.Option(help="transfer: used there")] = "resnet56",
    budget: Annotated[str, typer.Option(help="transfer: of both networks")] = "macs=0.5",
    training: Annotated[int, typer.Option(help="transfer: episodes on the first")] = 100,
    episodes: Annotated[int, typer.Option(help="evaluations, all budgets together")] = 300,
    seeds: Annotated[int, typer.Option()] = 3,
    images: Annotated[int, typer.Option(help="validation images per evaluation")] = 2000,
    out: Annotated[Path | None, typer.Option(help="rows are kept here")] = None,
) -> None:
    """Searches what is missing, and prints the table."""
    places = places_of(data, weights)
    settings = {"table": table_name, "data": places.data, "images": images, "episodes": episodes}
    if table_name == "budgets":
        env = _environment(model, places, BUDGETS[0], images)
        rows = Rows(
            out,
            settings | {"origins": [_origin(model, places)], "budgets": BUDGETS, "pooled": True},
        )
        for seed in tqdm(range(seeds), desc="seeds"):
            rows.ask("one policy", seed, partial(one_policy, env, episodes, seed))
            for name in FROM_NOTHING:
                rows.ask(name, seed, partial(separate, env, name, episodes, seed))
    elif table_name == "transfer":
        if data is None:
            raise typer.BadParameter("expected --data DIR and the --weights of both networks")
        first, second = (_environment(m, places, budget, images) for m in (source, target))
        origins = [_origin(m, places) for m in (source, target)]
        more = {"origins": origins, "budgets": [budget], "training": training}
        rows = Rows(out, settings | more)
        problem = f"{target}, {budget}"
        for seed in tqdm(range(seeds), desc="seeds"):
            carried = partial(carried_over, first, second, problem, training, episodes, seed)
            rows.ask("carried over", seed, carried)
            for name in FROM_NOTHING:
                fresh = partial(from_nothing, second, name, problem, episodes, seed)
                rows.ask(name, seed, fresh)
    else:
        raise typer.BadParameter(f"expected --table budgets or transfer, got {table_name!r}")
    print(table([row for row in rows.rows if row.seed < seeds]))


if __name__ == "__main__":
    start(main)
