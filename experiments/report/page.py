"""Stage ``report``: ``report.html``, one file that needs nothing else, made from the run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amc_compress.config.goals import drop_text
from amc_compress.config.run_config import RunConfig
from amc_compress.report.cautions import cautions
from amc_compress.report.charts import Axis, Chart, Figure
from amc_compress.report.leaderboard import floor_curve, front, leaderboard
from amc_compress.report.plan_pictures import plan_pictures
from amc_compress.report.rendering import render
from amc_compress.report.summary import read_summary, rows, tested_on
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.storage.stored_state import blamed_on
from amc_compress.runs.storage.trials import RecordedTrial, read_trials
from amc_env import CompressionPlan, RunFolderError
from amc_env.files import read_document, write_atomic
from amc_env.reward import REWARDS
from amc_env.scores.metric import Metric
from amc_env.validation.sentences import joined

_STAGE_COLOURS = {
    "train": "#8a97a8",
    "search": "#1668b8",
    "finetune": "#d9662b",
    "export": "#1b7f4d",
    "evaluate": "#8459a8",
}


def run_report(folder: RunFolder) -> None:
    """Writes ``report.html``.

    Raises:
        RunFolderError: If the run is not finished or one of its files is damaged.
    """
    remedy = (
        f"`amc export {folder.path}` makes the summary again, else start the run again in a new "
        f"folder"
    )
    with blamed_on(folder.path, remedy):
        page = _page(folder)
    write_atomic(folder / "report.html", page)


def _page(folder: RunFolder) -> str:
    """Reads the files, and returns the page."""
    summary = read_summary(folder.path)
    trials = read_trials(folder / "trials.jsonl", metric=folder.metric)
    expected = folder.results("search")["n_trials"]
    if len(trials) != expected:
        raise RunFolderError(
            f"{folder / 'trials.jsonl'} is cut short: expected {expected} trials, got "
            f"{len(trials)}; restore the file, or start the run again in a new folder."
        )
    config = folder.config
    cost = config.minimize or config.budget.names[0]
    curve = _curve if config.max_drop is None else floor_curve
    within = [trial for trial in trials if trial.within_budget]
    document = read_document(folder / "config.json")
    packages = document["packages"]
    made_with = [f"{name} {packages[name]}" for name in ("amc-compress", "torch", "python")]
    return render(
        "run.html",
        folder=folder,
        title=f"{folder.config.model} on {_data_name(folder)}: compressed",
        kicker=_kicker(folder, summary),
        headline=_headline(folder.config, summary),
        tiles=_tiles(folder.config, summary),
        rows=rows(summary),
        table_note=_table_note(folder.config, summary),
        cautions=cautions(folder, summary),
        notes=_notes(folder.results("search")),
        curve=curve(folder, within),
        cloud=_cloud(folder, within, cost),
        leaderboard=leaderboard(folder, within),
        plan=plan_pictures(folder),
        **_time(folder),
        cpu_seconds_per_episode=summary["cpu_seconds_per_episode"],
        options=document["options"],
        packages=packages,
        made_with=", ".join(made_with),
    )


def _notes(search: Mapping[str, Any]) -> list[str]:
    """Returns what the search has found out about network and data, and how plans were stopped."""
    found = list(search.get("notes", ()))
    if staged := search.get("staged"):
        ends = [f"{count} after stage {stage}" for stage, count in staged["ended_at"].items()]
        found.append(
            f"Plans were evaluated in stages: {search['n_trials']} of them on as many samples as "
            f"{staged['evaluations']:g} whole evaluations take; {joined(ends)}."
        )
    return found


def _data_name(folder: RunFolder) -> str:
    """The data set's name, or the last part of its folder's path."""
    return Path(folder.facts.data_name).name


def _kicker(folder: RunFolder, summary: dict[str, Any]) -> str:
    config = folder.config
    who = (
        f"agent {config.agent} · {int(summary['episodes'])} episodes"
        if config.spec.decides
        else config.spec.fixed_choice()
    )
    return (
        f"{config.spec.title} of {config.model} on {_data_name(folder)} · {who} · "
        f"seed {config.seed}"
    )


def _headline(config: RunConfig, summary: dict[str, Any]) -> str:
    before, after = summary["original"], summary["compressed"]
    loss = _change(Metric.from_dict(summary.get("metric")), before["score"], after["score"])
    with_what = []
    if config.spec.prunes:
        with_what.append(f"{after['macs'] / before['macs']:.0%} of the multiply-adds")
    if config.spec.sparsifies:
        with_what.append(f"{after['density']:.0%} of the weights")
    if config.spec.quantizes:
        with_what.append(f"{after['mean_bits']:.3g} bits per weight")
    with_what.append(f"{after['bytes'] / before['bytes']:.0%} of the bytes")
    return f"{config.model} with {joined(with_what)}, {loss}"


def _change(metric: Metric, before: float, after: float) -> str:
    """What became of the score, in a few words."""
    if not metric.is_accuracy:
        return f"at {metric.title} {metric.text(after)} (was {metric.text(before)})"
    points = 100 * (after - before)
    if abs(points) < 0.005:
        return "at the same accuracy"
    return f"for {abs(points):.2f} points of accuracy {'gained' if points > 0 else 'lost'}"


def _tiles(config: RunConfig, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Number and explanation of what was kept; the first that is decided says the budget."""
    before, after = summary["original"], summary["compressed"]
    metric = Metric.from_dict(summary.get("metric"))
    was = metric.text(before["score"])
    tiles = [(metric.text(after["score"]), f"{tested_on(summary)} {metric.title} (was {was})")]
    budget = f" ({_asked(config)})"
    if config.spec.prunes:
        tiles.append((f"{after['macs'] / before['macs']:.1%}", f"of the multiply-adds{budget}"))
        budget = ""
    if config.spec.sparsifies:
        tiles.append((f"{after['density']:.1%}", f"of the weights are not zero{budget}"))
        budget = ""
    if config.spec.quantizes:
        note = budget if config.spec.decides else ""
        tiles.append((f"{after['mean_bits']:.3g}", f"bits per weight, of 32{note}"))
    packed = " (model.packed)" if config.spec.packs else ""
    tiles.append((f"{after['bytes'] / before['bytes']:.1%}", f"of the bytes{packed}"))
    if after["latency_ms"]:
        batch = max(after["latency_ms"], key=int)
        speedup = before["latency_ms"][batch] / after["latency_ms"][batch]
        text = f"the speed at batch {batch}, model.onnx in ONNX Runtime, one thread"
        tiles.append((f"{speedup:.2f} ×", text))
    return tiles


def _asked(config: RunConfig) -> str:
    """The budget of a run, or how far the score may drop."""
    if config.max_drop is None:
        return f"budget {config.budget}"
    capped = any(upper < 1.0 for _, upper in config.budget.bounds.values()) or config.budget.limits
    more = f", budget {config.budget}" if capped else ""
    return f"a drop of at most {drop_text(config.max_drop)}{more}"


def _table_note(config: RunConfig, summary: dict[str, Any]) -> str:
    metric = Metric.from_dict(summary.get("metric"))
    seen, one = ("images", "image") if metric.is_accuracy else ("samples", "sample")
    title = (
        metric.title if metric.title[1:2].isupper() else metric.title[0].upper() + metric.title[1:]
    )
    note = f"{title} on "
    if tested_on(summary) == "test":
        note += f"test {seen} that nothing before this line has seen. "
    else:
        note += (
            f"the {seen} that plans and epochs were chosen by, as there are no test data: it is "
            f"likely worse on others. "
        )
    note += f"MACs are multiply-adds for one {one}. "
    if config.spec.quantizes:
        note += (
            "Bit operations are MACs times bits per weight times bits per activation. The size is "
            "that of the packed file, model.packed; the original's is safetensors."
        )
    elif config.spec.sparsifies:
        note += (
            "The size is that of the packed file, model.packed, which leaves the zeros out; the "
            "original's is safetensors. Runtimes compute with zeros as with other numbers: the "
            "file is smaller, the network no faster."
        )
    else:
        note += "The size is that of the safetensors file."
    if remark := summary.get("export_note"):
        note += f" {remark.rstrip('.')}."
    if rejected := summary.get("export_refused"):
        note += f" There is no ONNX file: {rejected}"
    if summary["original"]["latency_ms"]:
        note += (
            " Latency: of the ONNX files, in ONNX Runtime on one thread, medians of runs taken in "
            "turns with the original."
        )
        if config.spec.prunes and config.round_to % 8:
            note += (
                f" Processors like channels in multiples of 8; this plan keeps multiples of "
                f"{config.round_to}, which saves multiply-adds but less time (see --round-to)."
            )
    return note


def _curve(folder: RunFolder, trials: Sequence[RecordedTrial]) -> Figure:
    if not trials:
        note = "Nothing new was evaluated within the budget: the warm start knew the best plan."
        return Figure(note)
    rewards = [t.reward for t in trials]
    best = [max(rewards[: i + 1]) for i in range(len(rewards))]
    uniform = folder.results("search")["uniform"]["reward"]
    # A few very bad plans would squeeze everything else into a line at the top.
    ordered = sorted(rewards)
    low = min(ordered[len(ordered) // 20], uniform)
    visible = [max(low, r) for r in rewards]
    axis = Axis.around([*visible, *best, uniform], "reward")
    is_score = REWARDS.get(folder.config.reward) is REWARDS["score"]
    percent = is_score and folder.metric.is_accuracy
    chart = Chart(
        Axis(-0.5, max(trials[-1].episode + 0.5, 1), "episode"),
        Axis(axis.low, axis.high, "reward", percent),
        f"reward of each of {len(trials)} episodes, and the best so far",
    )
    form = folder.metric.reward_form
    hints = [f"episode {t.episode} ({t.source}): {t.reward:{form}}" for t in trials]
    policy = [t.source not in ("warm-up", "uniform", "random") for t in trials]
    for css, wanted in (("dot first", False), ("dot", True)):
        chosen = [i for i in range(len(trials)) if policy[i] is wanted]
        places = [(trials[i].episode, visible[i]) for i in chosen]
        chart.dots(places, css, [hints[i] for i in chosen])
    chart.horizontal(uniform, "reference")
    steps = [(t.episode, reward) for t, reward in zip(trials, best, strict=True)]
    chart.steps([*steps, (trials[-1].episode + 0.5, best[-1])], "best")
    more = " Plans far below are drawn at the lower edge." if min(rewards) < low else ""
    more += _if_known_before(folder, trials, uniform, percent)
    what = f"proxy {_searched(folder.metric)}" if is_score else f"reward ({folder.config.reward})"
    legend = [
        ("#1668b8", "best so far", ""),
        ("#d9662b", "uniform plan", "dashed"),
        ("#9cc4ea", "one episode", "round"),
    ]
    if not all(policy):
        legend.append(("#c3ccd7", "before the agent chose (uniform, warm-up, random)", "round"))
    return Figure(
        f"The {what} of every evaluated plan, before fine-tuning; the best plan ends "
        f"{_difference(best[-1], uniform, percent)} the uniform one.{more}",
        chart,
        legend,
    )


def _searched(metric: Metric) -> str:
    """Name of the score, of which more is better."""
    return metric.title if metric.higher_is_better else f"score (-{metric.title})"


def _if_known_before(
    folder: RunFolder, trials: Sequence[RecordedTrial], uniform: float, percent: bool
) -> str:
    """A sentence where the chosen plan is one that the warm start knew, which are not drawn."""
    evaluated = {CompressionPlan(trial.plan) for trial in trials}
    if folder.config.warm_start is None or folder.read_plan() in evaluated:
        return ""
    chosen = _difference(folder.results("search")["best"]["reward"], uniform, percent)
    return f" The chosen plan, {chosen} it, was known from the warm start."


def _difference(best: float, uniform: float, percent: bool) -> str:
    gain = best - uniform
    amount = f"{abs(100 * gain):.2f} points" if percent else f"{abs(gain):.4g}"
    return f"{amount} {'above' if gain >= 0 else 'below'}"


def _cloud(folder: RunFolder, trials: Sequence[RecordedTrial], cost: str) -> Figure:
    search = folder.results("search")
    bounds = search.get("bounds", folder.config.budget.bounds)  # older runs have none
    lower, upper = bounds.get(cost, (0.0, 1.0))
    best, uniform = search["best"], search["uniform"]
    metric = folder.metric
    name = f"proxy {metric.title}"
    # Accuracies end at 0; other scores may lie so far below that all others were one line.
    ordered = sorted(t.score for t in trials)
    low = ordered[len(ordered) // 20] if trials and not metric.is_accuracy else -math.inf
    low = min(low, best["score"], uniform["score"])
    points = [(t.cost_ratio[cost], metric.value(max(low, t.score))) for t in trials]
    ends = [
        (best["cost_ratio"][cost], metric.value(best["score"])),
        (uniform["cost_ratio"][cost], metric.value(uniform["score"])),
    ]
    xs = [x for x, _ in points + ends] + [upper, *([lower] if lower else [])]
    chart = Chart(
        Axis.around(xs, f"{cost}, share of the original", percent=True),
        Axis.around([y for _, y in points + ends], name, percent=metric.is_accuracy),
        f"{name} against {cost} of every evaluated plan",
    )
    chart.band(upper, chart.x.high, "outside")
    if lower:
        chart.band(chart.x.low, lower, "outside")
    hints = [
        f"episode {t.episode}: {t.cost_ratio[cost]:.1%}, {metric.said(t.score)}" for t in trials
    ]
    chart.dots(points, "dot", hints)
    ahead = front([(t.cost_ratio[cost], max(low, t.score)) for t in trials])
    chart.steps([(x, metric.value(score)) for x, score in ahead], "best")
    chart.dots(ends[1:], "uniform", ["uniform plan"], r=5)
    chart.dots(ends[:1], "chosen", ["the chosen plan"], r=5.5)
    note = (
        f"Cost against {name} of every evaluated plan. The budget "
        f"({folder.config.budget}) is hard: no plan may lie in the red."
        f"{' Plans far worse are drawn at the edge.' if trials and ordered[0] < low else ''}"
    )
    legend = [
        ("#1668b8", "chosen plan", "round"),
        ("#d9662b", "uniform plan", "round"),
        ("#9cc4ea", "other plans", "round"),
        ("#1668b8", "front: none cheaper is better", ""),
        ("#f5dcda", "outside the budget", "round"),
    ]
    return Figure(note, chart, legend)


def _time(folder: RunFolder) -> dict[str, Any]:
    seconds = {s: folder.results(s)["seconds"] for s in _STAGE_COLOURS if folder.is_done(s)}
    return {
        "stages": [
            (stage, _STAGE_COLOURS[stage], value, _duration(value))
            for stage, value in seconds.items()
            if value > 0
        ],
        "total_seconds": sum(seconds.values()),
    }


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
