"""The options of the search, whatever the learner."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from amc_compress.config.goals import AFTER, drop
from amc_compress.config.option import option
from amc_compress.config.presets import PRESETS, presets_text, standard_text
from amc_compress.config.texts import duration, files, folder, listed, words
from amc_env import Budget

_search = functools.partial(option, stage="search", panel="Search")


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for, by what, and how candidates are evaluated."""

    budget: Budget = _search(  # noqa: RUF009  # it declares a field
        None,
        "Hard limits as shares of the original: macs=0.5 (or 0.5 alone); several: "
        "macs=0.5,bytes=0.3; lower and upper: macs=0.45:0.5; fractions: mean_bits=4/32. Absolute "
        "ones with units: macs=20M, bytes=100kB (or KiB), latency=2ms, also with <= and >= (in "
        "quotes, for the shell); mixed with shares as you like. Costs: "
        "macs, params, bytes (of the packed file), density (weights that are not zero), bops "
        "(MACs x weight bits x activation bits), mean_bits (per weight, of 32), and those of "
        "--cost-table (latency, say) and --cost. Not given: macs=0.5; density=0.25 (of a "
        "pattern N:M no less than N/M); for bits mean_bits in the middle of --weight-bits "
        "(4/32 for 2-8), or bops where only --activation-bits are decided; for both "
        "macs=0.5,bytes=0.15 (more where weights have more than 4 bits).",
        everyday=True,
        kind=str,
    )
    learner_class: str | None = _search(
        None,
        "A subclass of the class of --learner to use in its place, package.module:Class.",
        metavar="PATH",
    )
    max_drop: str | None = _search(
        None,
        "How far the score may drop below the original's, in points (0.5: from 91.5% to 91.0%) or "
        "as a share of it (1%): the cheapest plan within that is searched for, by --minimize, "
        "within the --budget if one is given.",
        read=drop,
        kind=str,
        everyday=True,
    )
    max_drop_after: str = _search(
        "search",
        "With --max-drop, where the score is measured: search (on the candidates as they are, the "
        "fine-tuning will add to it) or finetune (candidates are fine-tuned, --epochs each, at one "
        "budget after the other; takes up to 6 fine-tunings).",
        choices=AFTER,
    )
    minimize: str = _search(
        "",
        "With --max-drop: the cost to make small, any that a budget may name.",
        default_text="what the learner is about: macs, density or bytes",
    )
    agent: str = _search(
        "",
        "What chooses: ddpg, td3, sac, tqc, crossq (learn decision by decision); "
        "ddpg-one-shot, td3-one-shot (learn whole plans); tpe, gp, cmaes, nsga2 (Optuna); "
        "evolution, evopress, local (change what is good); sensitivity, sensitivity-threshold "
        "(measure each decision, then compute); gradient, layer-errors (compute, in seconds); "
        "ddpg-sensitivity (both); random, uniform, deep-heavy, shallow-heavy. With options: "
        "tpe:storage=journal:study.log. `amc compare --list` says more. Your own: "
        "package.module:Class.",
        default_text="ddpg-one-shot",
        everyday=True,
    )
    evaluations: int = _search(
        None,
        "Search budget: how many plans are evaluated.",
        default_text=standard_text("evaluations"),
        aliases=("episodes",),
        least=1,
        everyday=True,
    )
    parallel: int | None = _search(
        None,
        "How many plans are proposed before the result of the first is awaited. It is part of the "
        "search: other numbers give other trials, while those of --workers do not.",
        default_text="as many as --workers when the run begins",
        least=1,
    )
    preset: str = _search(
        "standard",
        f"What is spent where other options do not say: {presets_text()}.",
        choices=PRESETS.keys(),
        everyday=True,
    )
    time_limit: float | None = _search(
        None,
        "End the search after the trial in which its evaluations have taken this long, e.g. 90s, "
        "10m or 1h30m; the run goes on with the best plan so far.",
        read=duration,
        kind=str,
        above=0,
        metavar="TIME",
        everyday=True,
    )
    proxy: str = _search(
        "reconstruction+recalibration",
        "Repairs of a candidate before its evaluation: reconstruction, recalibration, "
        "reconstruction+recalibration or none. Only pruned layers are reconstructed.",
    )
    finetune_steps: int = _search(
        0,
        "Training steps of a candidate before it is evaluated (slower, closer to the end result).",
        least=0,
    )
    n_validation: int = _search(
        None,
        "Validation images per evaluation (at most); the best plans are evaluated again on all "
        "of them.",
        default_text=standard_text("n_validation"),
        least=1,
    )
    staged: bool = _search(
        False,
        "Evaluate a plan on an eighth of --n-validation first, then on a quarter, half and all of "
        "it, while it may still win: it is stopped where a paired test (one-sided, 5%) against the "
        "best plan so far, on the same samples, says that it is worse. --evaluations counts "
        "evaluations on all samples, so that there are up to 8 times as many plans. A stopped plan "
        "has an estimated score, and never wins.",
    )
    ignore: tuple[str, ...] = _search(
        (), "Layer (or prefix of names) that must stay whole; may be repeated.", read=words
    )
    part: str | None = _search(
        None,
        "Submodule that is compressed, e.g. backbone.body: its inside, while its inputs and "
        "outputs and the rest of the network stay as they are. For networks with pre- or "
        "post-processing by hand; the rest need not be traceable, and its costs are fixed. "
        "Not given: the whole network, of fcos_small its body.",
    )
    action: str = _search(
        "centred",
        "What an action means: centred, interval or absolute.",
        formerly=("reading",),
    )
    reward: str = _search(
        "accuracy",
        "accuracy (or score: what is searched for, whatever the metric), error_log_macs (AMC's "
        "for soft budgets), accuracy_size, accuracy_bops, accuracy_latency (with --cost-table) or "
        "haq. Your own: package.module:function of an amc_env.Result.",
    )
    cost_table: tuple[str, ...] = _search(
        (),
        "Table of measured costs (JSON, from `amc latency-table`), which the budget may "
        "then name; may be repeated, or several with commas.",
        read=files,
    )
    cost: tuple[str, ...] = _search(
        (),
        "Cost of your own, NAME=package.module:Class, a subclass of amc_env.CostModel; "
        "the budget may then name it. May be repeated, or several with commas.",
        read=listed,
    )
    warm_start: str | None = _search(
        None,
        "Another run of the same network, data, learner and proxy: the search knows what "
        "that one has evaluated, at no cost. Its agent, budget, reward and action may differ.",
        read=folder,
        kind=Path,
    )
