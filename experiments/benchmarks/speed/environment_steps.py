"""Steps a second of the environment without evaluations: CPU-seconds, one thread, no network.

Random episodes of the synthetic tasks, whose plans all get the same score: what is left is the
arithmetic of a step. Columns: the environment itself; as ``gymnasium.make`` wraps it; in
Stable-Baselines3's ``DummyVecEnv`` of one; and plans a second that are made 1,000 at a time, from
actions and by rescaling. CPU-seconds of a single thread hardly depend on what else the machine
does; the best of several rounds is printed.

    python -m amc_compress.benchmarks.speed.environment_steps
    python -m amc_compress.benchmarks.speed.environment_steps --kind joint --layers 12,60 --parts
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import typer
from stable_baselines3.common.vec_env import DummyVecEnv

from amc_compress.benchmarks.bench import markdown, start
from amc_env import CompressionEnv, CompressionPlan
from amc_env.one_shot import rescale_all
from amc_env.recorded_tasks.synthetic import make_synthetic

KINDS = ("channels", "bits", "joint", "density")
PLANS = 1000
_ROUNDS = 5

Step = Callable[[np.ndarray], Any]


def unevaluated(kind: str, layers: int) -> CompressionEnv:
    """Returns a synthetic task in which the score of every plan is the same."""
    env = make_synthetic(layers, kind=kind)  # type: ignore[arg-type]

    def evaluate(plan: CompressionPlan) -> float:
        return 0.5

    env.learner.evaluate = evaluate  # type: ignore[method-assign]
    return env


def per_second(work: Callable[[], int], seconds: float) -> float:
    """Returns how much is done per CPU-second: the best of five rounds.

    Args:
        work: Does some, and returns how much.
        seconds: Of a round.
    """
    work()
    best = 0.0
    for _ in range(_ROUNDS):
        done, begin = 0, time.process_time()
        while (spent := time.process_time() - begin) < seconds:
            done += work()
        best = max(best, done / spent)
    return best


def episodes(reset: Callable[[], Any], step: Step, actions: np.ndarray) -> Callable[[], int]:
    """Returns what plays an episode with the next rows of actions, shape ``(n, decisions, 1)``."""
    number = 0

    def play() -> int:
        nonlocal number
        reset()
        for action in actions[number % len(actions)]:
            step(action)
        number += 1
        return int(actions.shape[1])

    return play


def measure(kind: str, layers: int, seconds: float) -> list[str]:
    """Returns one line of the table."""
    env = unevaluated(kind, layers)
    rng = np.random.default_rng(0)
    actions = rng.random((200, env.n_decisions, 1)).astype(np.float32)
    many = rng.random((PLANS, env.n_decisions))
    wrapped = gym.make(f"amc_env:amc/synthetic{_SUFFIX[kind]}-v0", n_layers=layers)
    wrapped.unwrapped.learner.evaluate = env.learner.evaluate  # type: ignore[attr-defined]
    vector = DummyVecEnv([lambda: unevaluated(kind, layers)])
    vector.reset()  # from then on it resets by itself
    rates = [
        per_second(episodes(env.reset, env.step, actions), seconds),
        per_second(episodes(wrapped.reset, wrapped.step, actions), seconds),
        per_second(episodes(lambda: None, vector.step, actions[:, :, None]), seconds),
        per_second(lambda: len(env.decode_all(many)), seconds),
        per_second(lambda: len(rescale_all(env, many)), seconds),
    ]
    return [kind, str(env.n_decisions), *(f"{rate:,.0f}" for rate in rates)]


_SUFFIX = {"channels": "", "bits": "-bits", "joint": "-joint", "density": "-density"}


def parts(kind: str, layers: int, seconds: float) -> list[list[str]]:
    """Returns what a step is made of: microseconds of each part, asked for on its own."""
    env = unevaluated(kind, layers)
    rng = np.random.default_rng(0)
    plans = env.decode_all(rng.random((20, env.n_decisions)))
    actions = rng.random((200, env.n_decisions, 1)).astype(np.float32)
    rows = [plan.values_for(env.decisions) for plan in plans]
    feasible, encoder = env._feasible, env._encoder

    def along(ask: Callable[[list[float]], Any]) -> float:
        def work() -> int:
            for row in rows:
                for made in range(env.n_decisions):
                    ask(row[:made])
            return len(rows) * env.n_decisions

        return 1e6 / per_second(work, seconds)

    def observed(prefix: list[float]) -> None:
        encoder.encode(prefix, (0.1, 0.9), 0.5)

    walk = along(feasible.corner_ratios)
    return [
        ["following the costs", f"{walk:.1f}"],
        ["feasible choices", f"{along(feasible.interval) - walk:.1f}"],
        ["balanced ratio", f"{along(feasible.balanced) - walk:.1f}"],
        ["observation", f"{along(observed) - walk:.1f}"],
        ["whole step", f"{1e6 / per_second(episodes(env.reset, env.step, actions), seconds):.1f}"],
    ]


def main(
    kind: Annotated[str, typer.Option(help="channels, bits, joint, density or all.")] = "all",
    layers: Annotated[str, typer.Option(help="Numbers of layers, comma-separated.")] = "12,60,300",
    seconds: Annotated[float, typer.Option(help="CPU-seconds of a round.")] = 0.3,
    show_parts: Annotated[bool, typer.Option("--parts", help="What a step is made of.")] = False,
) -> None:
    """Prints steps and plans per CPU-second."""
    kinds: Sequence[str] = KINDS if kind == "all" else (kind,)
    sizes = [int(n) for n in layers.split(",")]
    if show_parts:
        for k in kinds:
            header = [f"{k}, {sizes[0]} layers", "microseconds"]
            print(markdown(header, parts(k, sizes[0], seconds)), "\n")
        return
    rows = [measure(k, n, seconds) for k in kinds for n in sizes]
    header = ["decisions about", "decisions", "steps/s", "gymnasium.make", "SB3 DummyVecEnv"]
    print(markdown([*header, "plans/s decoded", "plans/s rescaled"], rows))


if __name__ == "__main__":
    start(main)
