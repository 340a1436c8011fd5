"""The report of a comparison: complete, readable, and safe whatever agents are called."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from matplotlib.image import imread
from support.runs.comparisons import TASKS, facts, realistic, results, search

from amc_compress.comparison.naming import file_names
from amc_compress.comparison.records import (
    FinalEvaluation,
    Results,
    ResultsFile,
    SearchRecord,
    read_results,
)
from amc_compress.comparison.report.drawing import spread
from amc_compress.comparison.report.findings import task_findings
from amc_compress.comparison.report.report import write_report
from amc_compress.comparison.report.styles import agent_styles
from amc_compress.comparison.report.tables import task_table
from amc_compress.comparison.statistics import statistics
from amc_compress.comparison.statistics.analysis import analyse
from amc_compress.comparison.statistics.curves import (
    elapsed,
    evaluation_curves,
    iqm_curves,
    seconds_curves,
)
from amc_compress.comparison.statistics.scores import ComparisonError, score_matrices, select
from amc_env import Metric, MissingDependencyError

AGENTS = ("uniform", "random", "local", "ddpg", "sensitivity", "one-shot:agent=td3,entropy=0.01")
QUICK = 30
ERROR = "InputDataError: the kernel matrix is <singular> & useless."


@pytest.fixture(scope="module")
def compared() -> Results:
    return realistic(
        AGENTS, TASKS[:2], seeds=3, evaluations=120, failed={(TASKS[1], "random", 2): ERROR}
    )


@pytest.fixture(scope="module")
def folder(compared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    assert write_report(folder, compared, resamples=QUICK) == folder / "report.html"
    return folder


def test_report_names_every_agent_task_and_failure(folder):
    page = (folder / "report.html").read_text()
    for name in (*AGENTS, *TASKS[:2]):
        assert name in page
    assert "Failed, and counted as the uniform plan: 1 of 28 searches." in page
    assert "InputDataError: the kernel matrix is &lt;singular&gt; &amp; useless." in page
    assert "<singular>" not in page
    assert "Run once, as they are deterministic: uniform, sensitivity." in page


def test_page_needs_no_other_file(folder):
    page = (folder / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 5 + 2 * 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "$" not in re.sub(r'src="[^"]*"', "", page)


def test_figures_are_pictures_and_not_blank(folder):
    figures = sorted((folder / "figures").glob("*.png"))
    assert [f.stem for f in figures] == [
        f"evaluations-{TASKS[1]}", f"evaluations-{TASKS[0]}", "improvement", "profiles", "ranks",
        "scores-evaluations", "scores", f"seconds-{TASKS[1]}", f"seconds-{TASKS[0]}",
    ]  # fmt: skip
    for figure in figures:
        pixels = imread(figure)[..., :3]
        assert min(pixels.shape[:2]) > 200
        is_ink = (pixels < 0.95).any(axis=2)
        assert is_ink.mean() > 0.01
        colours = {tuple(c) for c in np.round(pixels[is_ink][::7] * 8).astype(int).tolist()}
        assert len(colours) > 8


def test_nothing_in_a_figure_is_cut_off_at_its_border(folder):
    for figure in (folder / "figures").glob("*.png"):
        pixels = imread(figure)[..., :3]
        for border in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
            assert (border > 0.99).all(), figure.name


def test_tables_are_markdown_with_all_agents(folder, compared):
    text = (folder / "tables.md").read_text()
    tables = re.split(r"^### ", text, flags=re.MULTILINE)
    for task in TASKS[:2]:
        table = next(t for t in tables if t.startswith(f"{task}\n"))
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) == 1
        assert {row.split("|")[1].strip() for row in rows[2:]} == set(AGENTS)
    assert ERROR in text


@pytest.mark.slow
def test_report_of_equal_results_is_equal(folder, compared, tmp_path):
    write_report(tmp_path, compared, resamples=QUICK)
    for name in ("report.html", "tables.md"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_agents_with_html_in_their_names_are_written_as_text(tmp_path):
    evil = '<script>alert("x")</script>|&$title'
    write_report(tmp_path, results({"t": {evil: [0.7, 0.8], "b": [0.6, 0.65]}}), resamples=QUICK)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert f"<h1>2 agents compared: {escape(evil)} scores highest</h1>" in page
    assert "\\|&$title" in (tmp_path / "tables.md").read_text()


def test_table_holds_means_marks_imputed_counts_seconds_and_final_evaluations():
    final = FinalEvaluation((0, 0), 0.75, 0.85, 0.84, 10.0)
    late = search("t", "a", 1, [0.5] * 29 + [0.9], final=replace(final, validation=0.77))
    late = replace(late, trials=late.trials[-1:])  # evaluated curves before
    found = Results(
        {"t": facts("t")}, (search("t", "a", 0, [0.7] * 30, final=final, agent_seconds=0.2), late)
    )
    table = task_table(analyse(found, resamples=QUICK), "t")
    assert table.header == (
        "agent", "seeds", "25", "30", "own s / evaluation", "validation", "fine-tuned", "test",
    )  # fmt: skip
    assert table.rows == (
        (
            "a", "2", "0.6500 ± 0.0707 [1]", "0.8000 ± 0.1414", "0.1",
            "76.00 ± 1.41%", "85.00 ± 0.00%", "84.00 ± 0.00%",
        ),
    )  # fmt: skip


def test_score_table_has_the_marks_before_the_end_of_any_search():
    def found(long: int) -> Results:
        searches = [search("t", a, 0, [0.7] * 60) for a in "ab"]
        searches += [search("u", a, 0, [0.7] * long) for a in "ab"]
        return Results({"t": facts("t"), "u": facts("u")}, tuple(searches))

    assert list(analyse(found(60), resamples=QUICK).overall.at_marks) == [25, 50]
    assert list(analyse(found(80), resamples=QUICK).overall.at_marks) == [25, 50, 60]


def test_columns_without_any_evaluation_are_left_out():
    found = results({"t": {"a": [0.7, 0.8]}})
    assert "test" not in task_table(analyse(found, resamples=QUICK), "t").header


@pytest.mark.parametrize(
    "found",
    [
        results({"t": {"a": [0.7]}}),
        results({"t": {"a": [0.7], "b": [0.8]}, "u": {"a": [0.9], "b": [0.6]}}),
        results({"t": {"a": [0.7] * 3, "uniform": [0.6]}}),
        results({"t": {"a": [0.5, 0.55]}, "u": {"b": [0.5, 0.5]}}),
        Results(
            {"t": facts("t")},
            (
                SearchRecord("t", "a", 0, 9, error="It failed."),
                SearchRecord("t", "b", 0, 9),
                SearchRecord("t", "b", 1, 9),
            ),
        ),
    ],
    ids=["one search", "one seed", "no variance", "no shared task", "no plan at all"],
)
def test_poor_results_are_reported_without_warnings(found, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report(tmp_path, found, resamples=QUICK).read_text()
    for s in found.searches:
        assert s.agent in page
        assert s.task in page
    assert "nan" not in re.sub(r'src="[^"]*"', "", page).lower()


def test_missing_rliable_stops_before_anything_is_written(monkeypatch, compared, tmp_path):
    def missing() -> None:
        raise MissingDependencyError("install")

    monkeypatch.setattr("amc_compress.comparison.statistics.analysis.require_rliable", missing)
    assert statistics.require_rliable is not missing
    with pytest.raises(MissingDependencyError):
        write_report(tmp_path / "new", compared)
    assert not (tmp_path / "new").exists()


def test_unknown_reference_is_rejected_with_the_known_agents(tmp_path):
    with pytest.raises(ComparisonError, match="got 'c'; choose one of: a, b"):
        write_report(tmp_path, results({"t": {"a": [0.7], "b": [0.8]}}), reference="c")


def test_curves_are_means_of_the_best_so_far_and_begin_with_the_last_first_plan():
    late = search("t", "a", 1, [0.5, 0.9, 0.8])
    late = replace(late, trials=late.trials[1:])
    found = Results({"t": facts("t")}, (search("t", "a", 0, [0.7, 0.6, 0.8]), late))
    curve = evaluation_curves(select(found), "t")["a"]
    assert curve.x.tolist() == [2.0, 3.0]
    assert curve.mean == pytest.approx([0.8, 0.85])
    assert np.all((curve.low <= curve.mean) & (curve.mean <= curve.high))


def test_failed_searches_lie_on_the_uniform_plan_in_curves():
    found = Results(
        {"t": facts("t")},
        (search("t", "a", 0, [0.8, 0.8]), search("t", "a", 1, [0.9], evaluations=2, error="No.")),
    )
    assert evaluation_curves(select(found), "t")["a"].mean == pytest.approx([0.7, 0.7])
    assert seconds_curves(select(found), "t")["a"].mean == pytest.approx(0.7)


def test_seconds_are_those_of_agent_and_evaluation_added_up():
    run = search("t", "a", 0, [0.6, 0.8, 0.7], agent_seconds=0.5)  # and 0.5 for each evaluation
    assert elapsed(run).tolist() == [1.0, 2.0, 3.0]
    curve = seconds_curves(select(Results({"t": facts("t")}, (run,))), "t")["a"]
    assert (curve.x[0], curve.x[-1]) == (1.0, 3.0)
    assert set(curve.mean[curve.x < 2.0]) == {0.6}
    assert set(curve.mean[curve.x >= 2.0]) == {0.8}
    assert np.isnan(curve.low).all()


def test_score_curves_end_at_the_interquartile_means(compared):
    comparison = select(compared)
    matrices = score_matrices(comparison)
    curves = iqm_curves(comparison, matrices)
    values = statistics.aggregates(matrices.scores, resamples=2)
    for agent, curve in curves.items():
        assert curve.mean[-1] == pytest.approx(values[agent]["iqm"].estimate)
    middle = score_matrices(comparison, 60).scores
    assert curves["local"].mean[59] == pytest.approx(
        statistics.aggregates({"local": middle["local"]}, resamples=2)["local"]["iqm"].estimate
    )


def test_events_hold_every_trial_with_the_tags_of_a_search(folder, compared):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = folder / "tensorboard" / TASKS[0] / "one-shot_agent=td3,entropy=0.01" / "seed-1"
    events = EventAccumulator(str(run)).Reload()
    assert set(events.Tags()["scalars"]) == {
        "reward/last", "reward/best", "info/accuracy", "info/score",
    }  # fmt: skip
    record = next(s for s in compared.searches if s.key[:3] == (TASKS[0], AGENTS[-1], 1))
    last = events.Scalars("reward/last")
    assert [e.step for e in last] == [t.evaluation - 1 for t in record.trials]
    assert [e.value for e in last] == pytest.approx([t.reward for t in record.trials])
    best = [e.value for e in events.Scalars("reward/best")]
    assert best == pytest.approx(np.maximum.accumulate([t.reward for t in record.trials]))
    assert last[-1].wall_time == pytest.approx(elapsed(record)[-1])


@pytest.mark.slow
def test_events_hold_the_figures_and_a_second_report_replaces_the_first(compared, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = results({"t": {"a": [0.7, 0.8], "b": [0.6, 0.65]}})
    own = tmp_path / "tensorboard" / "t" / "a" / "seed-0" / "events.out.tfevents.of.a.search"
    own.parent.mkdir(parents=True)
    own.touch()
    for _ in range(2):
        write_report(tmp_path, small, resamples=QUICK)
    files = [f for f in (tmp_path / "tensorboard").rglob("events*") if f != own]
    assert len(files) == 4 + 1
    assert own.exists()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "report")).Reload()
    assert {f"figures/{f.stem}" for f in (tmp_path / "figures").iterdir()} == set(
        events.Tags()["images"]
    )
    image = events.Images("figures/ranks")[0].encoded_image_string
    pixels = imread(io.BytesIO(image))
    assert pixels.shape == imread(tmp_path / "figures" / "ranks.png")[..., :3].shape


def test_every_agent_has_its_own_look_and_label():
    long = [f"ddpg:exploration={'9' * 30},{i}" for i in range(25)]
    styles = agent_styles(["uniform", *long])
    looks = {(s.colour, s.line) for s in styles.values()}
    assert len(looks) == 26
    labels = [s.label for s in styles.values()]
    assert len(set(labels)) == 26
    assert max(map(len, labels)) <= 26


def test_of_a_users_agent_the_class_is_shown():
    labels = ("package.module.Mine", "other.Mine", "package.module.Mine:sigma=0.5", "local")
    styles = agent_styles(labels)
    assert [styles[label].label for label in labels] == [
        "Mine", "Mine… 2", "Mine:sigma=0.5", "local",
    ]  # fmt: skip


def test_labels_are_apart_in_order_and_near_their_lines():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([1.0, 1.0], 0.1) == pytest.approx([0.9, 1.0])
    requests = np.sort(np.random.default_rng(0).uniform(size=12)).tolist()
    places = spread(requests, 0.07)
    assert np.all(np.diff(places) > 0.07 - 1e-9)


def test_file_names_are_plain_and_all_different():
    names = file_names(["a/b", "a:b", "A_b", "../x", "ok-1.0,k=2"])
    assert list(names.values()) == ["a_b", "a_b_2", "A_b_3", "_x", "ok-1.0,k=2"]


def test_scores_of_another_metric_are_shown_in_its_form(tmp_path):
    task = replace(
        facts("t", uniform_reward=-3e-7), original_score=-2e-7,
        metric=Metric("mse", higher_is_better=False),
    )  # fmt: skip
    searches = [
        search("t", "mine", seed, [reward], final=FinalEvaluation((0, 0), reward, test=reward))
        for seed, reward in enumerate((-2.5e-7, -2.25e-7))
    ]
    found = Results({"t": task}, searches)
    analysis = analyse(found, resamples=QUICK)
    table = task_table(analysis, "t")
    assert table.header[-2:] == ("validation MSE", "test MSE")
    (row,) = table.rows
    assert row[2] == "-2.375e-07 ± 1.768e-08"
    assert row[-1] == "2.375e-07 ± 1.768e-08"
    assert "uniform plan -3e-07" in table.note
    (sentence, *_) = task_findings("t", analysis.tasks["t"])
    assert "mean reward -2.375e-07, 6.25e-08 above the uniform plan" in sentence
    file = ResultsFile(tmp_path / "results.jsonl")
    file.add_task(task)
    for record in searches:
        file.add(record)
    assert read_results(file.path).tasks == {"t": task}
