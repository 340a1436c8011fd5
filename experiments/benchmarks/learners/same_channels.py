r"""How often two channel learners keep the same channels.

What follows a selection (cut, least squares, batch norms, training) is the same for all learners
that cut channels, so those that keep the same ones end with the same network.

    python -m amc_compress.benchmarks.learners.same_channels \
        --model resnet20 --data DIR --weights FILE \
        --validation-split tail --seed 0 --seed 1 --seed 2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from amc_compress.benchmarks.bench import load, start
from amc_compress.benchmarks.learners.pruning_learners import LEARNERS, budgeted, prepare
from amc_compress.learners import ChannelPruning
from amc_compress.tasks import SplitKind

KNOWN = tuple(name for name in LEARNERS if budgeted(name) == "macs")


def shared_units(first: ChannelPruning, second: ChannelPruning) -> tuple[int, int, float]:
    """Returns what two learners of one network have in common.

    Returns:
        How many choices (a channel group and a number of channels) keep the same channels, how
        many there are, and the mean share of channels that both keep.
    """
    shares = []
    for decision in first.decisions:
        for count in sorted({decision.units(choice) for choice in decision.choices}):
            if count == decision.size:
                continue  # nothing to choose
            chosen = [set(x.select(decision.target, count).tolist()) for x in (first, second)]
            shares.append(len(chosen[0] & chosen[1]) / count)
    return sum(s == 1.0 for s in shares), len(shares), sum(shares) / len(shares)


def main(
    model: str = "digitsnet",
    data: str = "digits",
    weights: Annotated[Path | None, typer.Option(help="Trained weights.")] = None,
    first: Annotated[str, typer.Option(help=", ".join(KNOWN))] = "channels lasso",
    second: Annotated[str, typer.Option(help="As --first.")] = "remastered",
    seed: Annotated[list[int], typer.Option(help="Repeat for more.")] = [0],  # noqa: B006
    round_to: Annotated[int, typer.Option(help="Kept channels: multiples of this.")] = 4,
    validation_split: SplitKind = "random",
) -> None:
    """Prints, per seed, how many choices keep the same channels."""
    for name in (first, second):
        if name not in KNOWN:
            raise typer.BadParameter(f"{name}: expected one of {', '.join(KNOWN)}.")
    for number in seed:
        network, splits = load(model, data, weights, validation_split=validation_split, seed=number)
        made = [prepare(n, network, splits, number, round_to)[0] for n in (first, second)]
        assert isinstance(made[0], ChannelPruning)  # noqa: S101
        assert isinstance(made[1], ChannelPruning)  # noqa: S101
        same, total, share = shared_units(made[0], made[1])
        print(
            f"{first}, {second}, seed {number}: the same channels in {same} of {total} choices, "
            f"{share:.1%} of the channels shared",
            flush=True,
        )


if __name__ == "__main__":
    start(main)
