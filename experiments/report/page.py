"""Stage ``report``: ``report.html``, one file that needs nothing else, made from the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from amc_compress.config.run_config import RunConfig
from amc_compress.report.charts import Axis, Chart
from amc_compress.report.plan_pictures import plan_parts
from amc_compress.report.summary import fixed_choice, read_summary, rows
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.storage.stored_state import blamed_on
from amc_compress.runs.storage.trials import RecordedTrial, read_trials
from amc_env import Budget, CompressionPlan, RunFolderError
from amc_env.files import read_document, write_atomic

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
    trials = read_trials(folder / "trials.jsonl")
    expected = folder.results("search")["n_trials"]
    if len(trials) != expected:
        raise RunFolderError(
            f"{folder / 'trials.jsonl'} is cut short: expected {expected} trials, got "
            f"{len(trials)}; restore the file, or start the run again in a new folder."
        )
    return render(folder, summary, trials)


def render(folder: RunFolder, summary: dict[str, Any], trials: Sequence[RecordedTrial]) -> str:
    """Returns the page."""
    template = Template((files("amc_compress.report") / "report_template.html").read_text("utf-8"))
    cost = next(iter(Budget.parse(folder.config.budget).bounds))
    within = [trial for trial in trials if trial.within_budget]
    parts = {
        "title": escape(f"{folder.config.model} on {_data_name(folder)}: compressed"),
        **_head(folder, summary),
        **_table(folder.config, summary),
        **_curve(folder, within),
        **_cloud(folder, within, cost),
        **plan_parts(folder),
        "search_style": "" if folder.config.decides else 'style="display:none"',
        **_time(folder, summary),
        **_options(folder),
    }
    return template.substitute(parts)


def _data_name(folder: RunFolder) -> str:
    """The data set's name, or the last part of its folder's path."""
    return Path(folder.facts.data_name).name


_METHODS = {
    "channels": "Channel pruning",
    "group-lasso": "Channel pruning by group lasso",
    "remastered": "Channel pruning by lasso",
    "discrimination": "Discrimination-aware channel pruning",
    "sparse": "Weight pruning",
    "deep": "Deep compression",
    "uniform": "Uniform quantization",
    "codebook": "Codebook quantization",
    "joint": "Channel pruning and quantization",
}


def _head(folder: RunFolder, summary: dict[str, Any]) -> dict[str, str]:
    config = folder.config
    before, after = summary["original"], summary["compressed"]
    points = 100 * (after["accuracy"] - before["accuracy"])
    if abs(points) < 0.005:
        loss = "at the same accuracy"
    else:
        loss = f"for {abs(points):.2f} points of accuracy {'gained' if points > 0 else 'lost'}"
    tiles = [(f"{after['accuracy']:.2%}", f"test accuracy (was {before['accuracy']:.2%})")]
    with_what = []
    macs, size = after["macs"] / before["macs"], after["bytes"] / before["bytes"]
    if config.prunes:
        with_what.append(f"{macs:.0%} of the multiply-adds")
        tiles.append((f"{macs:.1%}", f"of the multiply-adds (budget {escape(config.budget)})"))
    if config.sparsifies:
        with_what.append(f"{after['density']:.0%} of the weights")
        note = "" if config.prunes else f" (budget {escape(config.budget)})"
        tiles.append((f"{after['density']:.1%}", f"of the weights are not zero{note}"))
    if config.quantizes:
        with_what.append(f"{after['mean_bits']:.3g} bits per weight")
        known = config.prunes or config.sparsifies or not config.decides
        note = "" if known else f" (budget {escape(config.budget)})"
        tiles.append((f"{after['mean_bits']:.3g}", f"bits per weight, of 32{note}"))
    with_what.append(f"{size:.0%} of the bytes")
    tiles.append((f"{size:.1%}", f"of the bytes{' (model.packed)' if config.packs else ''}"))
    if after["latency_ms"]:
        batch = max(after["latency_ms"], key=int)
        old, new = before["latency_ms"][batch], after["latency_ms"][batch]
        speed = f"the speed at batch {batch}, model.onnx in ONNX Runtime, one thread"
        tiles.append((f"{old / new:.2f} ×", speed))
    who = (
        f"agent {escape(config.agent)} · {int(summary['episodes'])} episodes"
        if config.decides
        else escape(fixed_choice(config))
    )
    return {
        "kicker": f"{_METHODS[config.learner]} of {escape(config.model)} on "
        f"{escape(_data_name(folder))} · {who} · seed {config.seed}",
        "headline": f"{escape(config.model)} with {_and(with_what)}, {loss}",
        "tiles": "\n".join(
            f'<div class="tile"><b>{value}</b><span>{text}</span></div>' for value, text in tiles
        ),
    }


def _and(parts: Sequence[str]) -> str:
    """Joins as in ``"a, b and c"``."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _table(config: RunConfig, summary: dict[str, Any]) -> dict[str, str]:
    lines = []
    for row in rows(summary):
        name, old, new, change = map(escape, row)
        css = ""
        if "slower" in change or change.startswith("-"):
            css = ' class="bad"'
        elif "faster" in change or change.startswith("+"):
            css = ' class="good"'
        lines.append(f"<tr><td>{name}</td><td>{old}</td><td>{new}</td><td{css}>{change}</td></tr>")
    return {"table": "\n".join(lines), "table_note": _table_note(config, summary)}


def _table_note(config: RunConfig, summary: dict[str, Any]) -> str:
    note = (
        "Accuracy on test images that nothing before this line has seen. MACs are multiply-adds "
        "for one image. "
    )
    if config.quantizes:
        note += (
            "Bit operations are MACs times bits per weight times bits per activation. The size is "
            "that of the packed file, model.packed; the original's is safetensors."
        )
    elif config.sparsifies:
        note += (
            "The size is that of the packed file, model.packed, which leaves the zeros out; the "
            "original's is safetensors. Runtimes compute with zeros as with other numbers: the "
            "file is smaller, the network no faster."
        )
    else:
        note += "The size is that of the safetensors file."
    if rejected := summary.get("export_refused"):
        note += f" There is no ONNX file: {escape(str(rejected))}"
    if summary["original"]["latency_ms"]:
        note += (
            " Latency: of the ONNX files, in ONNX Runtime on one thread, medians of runs taken in "
            "turns with the original."
        )
        if config.prunes and config.round_to % 8:
            note += (
                f" Processors like channels in multiples of 8; this plan keeps multiples of "
                f"{config.round_to}, which saves multiply-adds but less time (see --round-to)."
            )
    return note


def _curve(folder: RunFolder, trials: Sequence[RecordedTrial]) -> dict[str, str]:
    if not trials:
        note = "Nothing new was evaluated within the budget: the warm start knew the best plan."
        return {"curve": "", "curve_legend": "", "curve_note": note}
    rewards = [t.reward for t in trials]
    best = [max(rewards[: i + 1]) for i in range(len(rewards))]
    uniform = folder.results("search")["uniform"]["reward"]
    # A few very bad plans would squeeze everything else into a line at the top.
    ordered = sorted(rewards)
    low = min(ordered[len(ordered) // 20], uniform)
    visible = [max(low, r) for r in rewards]
    axis = Axis.around([*visible, *best, uniform], "reward")
    percent = folder.config.reward == "accuracy"
    chart = Chart(
        Axis(-0.5, max(trials[-1].episode + 0.5, 1), "episode"),
        Axis(axis.low, axis.high, "reward", percent),
        f"reward of each of {len(trials)} episodes, and the best so far",
    )
    hints = [f"episode {t.episode} ({t.source}): {t.reward:.4f}" for t in trials]
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
    what = "proxy accuracy" if percent else f"reward ({escape(folder.config.reward)})"
    legend = [
        _key("#1668b8", "best so far"),
        _key("#d9662b", "uniform plan", "dashed"),
        _key("#9cc4ea", "one episode", "round"),
    ]
    if not all(policy):
        legend.append(_key("#c3ccd7", "before the agent chose (uniform, warm-up, random)", "round"))
    return {
        "curve": chart.svg(),
        "curve_legend": "".join(legend),
        "curve_note": f"The {what} of every evaluated plan, before fine-tuning; the best plan ends "
        f"{_difference(best[-1], uniform, percent)} the uniform one.{more}",
    }


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


def _cloud(folder: RunFolder, trials: Sequence[RecordedTrial], cost: str) -> dict[str, str]:
    lower, upper = Budget.parse(folder.config.budget).bounds[cost]
    search = folder.results("search")
    best, uniform = search["best"], search["uniform"]
    points = [(t.cost_ratio[cost], t.accuracy) for t in trials]
    ends = [
        (best["cost_ratio"][cost], best["accuracy"]),
        (uniform["cost_ratio"][cost], uniform["accuracy"]),
    ]
    xs = [x for x, _ in points + ends] + [upper, *([lower] if lower else [])]
    chart = Chart(
        Axis.around(xs, f"{cost}, share of the original", percent=True),
        Axis.around([y for _, y in points + ends], "proxy accuracy", percent=True),
        f"proxy accuracy against {cost} of every evaluated plan",
    )
    chart.band(upper, chart.x.high, "outside")
    if lower:
        chart.band(chart.x.low, lower, "outside")
    hints = [
        f"episode {t.episode}: {t.cost_ratio[cost]:.1%}, accuracy {t.accuracy:.2%}" for t in trials
    ]
    chart.dots(points, "dot", hints)
    chart.dots(ends[1:], "uniform", ["uniform plan"], r=5)
    chart.dots(ends[:1], "chosen", ["the chosen plan"], r=5.5)
    legend = [
        _key("#1668b8", "chosen plan", "round"),
        _key("#d9662b", "uniform plan", "round"),
        _key("#9cc4ea", "other plans", "round"),
        _key("#f5dcda", "outside the budget", "round"),
    ]
    return {
        "cloud": chart.svg(),
        "cloud_legend": "".join(legend),
        "cloud_note": f"Cost against proxy accuracy of every evaluated plan. The budget "
        f"({escape(folder.config.budget)}) is hard: no plan may lie in the red.",
    }


def _time(folder: RunFolder, summary: dict[str, Any]) -> dict[str, str]:
    seconds = {
        stage: folder.results(stage)["seconds"]
        for stage in _STAGE_COLOURS
        if folder.is_done(stage) and folder.results(stage)["seconds"] > 0
    }
    total = sum(seconds.values())
    bars = "".join(
        f'<div style="width:{100 * value / total:.2f}%;background:{_STAGE_COLOURS[stage]}" '
        f'title="{stage}: {value:.1f} s"></div>'
        for stage, value in seconds.items()
    )
    legend = [
        _key(_STAGE_COLOURS[stage], f"{stage} {_duration(value)}", "round")
        for stage, value in seconds.items()
    ]
    legend.append(
        f"<li>{summary['cpu_seconds_per_episode']:.2g} processor seconds per episode, all included"
        f"</li>"
    )
    return {"time_bar": f'<div class="bars">{bars}</div>', "time_legend": "".join(legend)}


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _options(folder: RunFolder) -> dict[str, str]:
    document = read_document(folder / "config.json")
    lines = [
        f"<tr><td>--{escape(name.replace('_', '-'))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in document["options"].items()
    ]
    lines += [
        f"<tr><td>{escape(name)}</td><td>{escape(str(version))}</td></tr>"
        for name, version in document["packages"].items()
    ]
    versions = {name: escape(str(version)) for name, version in document["packages"].items()}
    return {
        "command": escape(folder.command),
        "options": "\n".join(lines),
        "footer": f"amc-compress {versions['amc-compress']}, torch {versions['torch']}, "
        f"python {versions['python']}. The numbers of this page are in summary.json, the "
        f"trials in trials.jsonl.",
    }


def _key(colour: str, text: str, css: str = "") -> str:
    style = "background" if css == "round" else "border-color"
    return f'<li><i class="{css}" style="{style}:{colour}"></i>{text}</li>'
