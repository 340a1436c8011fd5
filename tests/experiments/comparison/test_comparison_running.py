"""Searches of a comparison: equal evaluations, made once, and failures that stop nothing else."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from amc_compress.agents import AGENTS, Agent
from amc_compress.cli import run
from amc_compress.commands.compare import compare
from amc_compress.comparison.records import RESULTS, ResultsFile, SearchRecord, read_results
from amc_compress.comparison.searches.running import (
    ComparisonSettings,
    Tell,
    jobs_of,
    make_searches,
    only_results,
)
from amc_compress.comparison.searches.searching import prepare_task, search_once
from amc_compress.comparison.tasks import TASKS, Places, check_task, find_task
from amc_compress.evaluations.where import Where
from amc_env import MissingDependencyError, RunFolderError
from amc_env.files import only_one
from amc_env.recorded_tasks.recorded import recorded_names

RECORDED = "digits-channels-recorded"


def comparison(folder: Path, **changes) -> ComparisonSettings:
    settings = {
        "tasks": (RECORDED,),
        "agents": ("uniform", "local"),
        "seeds": (0, 1),
        "evaluations": 8,
        "places": Places(),
        "folder": folder,
    }
    return ComparisonSettings(**{**settings, **changes})


def run_comparison(comparison: ComparisonSettings, tell: Tell = lambda record: None) -> ResultsFile:
    missing = comparison.check()
    with only_results(comparison.folder) as file:
        make_searches(comparison, missing, file, tell)
        return file


class NanAgent(Agent):
    """Answers what is no action."""

    name = "nan"

    def run(self, search):
        search.uniform()
        search.play(lambda *_: float("nan"), "nan")


class Crash(Agent):
    """Has a bug."""

    name = "crash"

    def run(self, search):
        raise RuntimeError("a bug\nof two lines")


@pytest.fixture
def bad_agents(monkeypatch):
    monkeypatch.setitem(AGENTS, "nan", NanAgent)
    monkeypatch.setitem(AGENTS, "crash", Crash)


class TestSearches:
    @pytest.fixture(scope="class")
    @staticmethod
    def opened(tmp_path_factory):
        return prepare_task(find_task("digits-channels"), Places(), tmp_path_factory.mktemp("c"))

    def test_trials_are_what_the_agent_evaluated_within_the_budget(self, opened):
        record = search_once(opened, "sensitivity:points=1", 0, 12)
        assert [t.source for t in record.trials] == ["uniform", "sensitivity"]
        assert [t.evaluation for t in record.trials] == [1, 2 + 8]  # a probe per decision between
        assert record.error is None

    def test_every_agent_gets_the_same_evaluations_and_the_winner_the_whole_split(self, opened):
        record = search_once(opened, "local", 0, 10)
        assert len(record.trials) == 10
        assert all(t.cost_ratio["macs"] <= 0.3 for t in record.trials)
        assert record.final is not None
        assert 0.5 < record.final.validation <= 1.0
        assert opened.facts.uniform_reward == record.trials[0].reward

    def test_equal_plans_are_evaluated_once_and_their_seconds_counted_again(self, opened):
        learner = opened.learner
        search_once(opened, "local", 3, 10)
        spent = learner.spent
        again = search_once(opened, "local", 3, 10)
        assert learner.spent == spent
        assert sum(t.judge_seconds for t in again.trials) > 0.0
        assert all(t.agent_seconds >= 0.0 for t in again.trials)

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_record_from_stored_evaluations(self, opened, tmp_path):
        def facts(record: SearchRecord):
            return [(t.evaluation, t.plan, t.reward, t.source) for t in record.trials]

        fresh = prepare_task(find_task("digits-channels"), Places(), tmp_path)
        one, two = (search_once(o, "evolution", 5, 8) for o in (opened, fresh))
        assert facts(one) == facts(two)

    def test_options_of_agent_and_environment_stand_in_the_label(self, opened):
        record = search_once(opened, "random:finalists=0,env.action=interval", 0, 4)
        assert record.error is None
        assert record.agent == "random:finalists=0,env.action=interval"
        narrow = search_once(opened, "random:env.budget=macs=0.2", 0, 4)
        assert all(t.cost_ratio["macs"] <= 0.2 for t in narrow.trials)

    @pytest.mark.usefixtures("bad_agents")
    def test_what_an_agent_does_wrong_becomes_one_sentence(self, opened):
        bad = search_once(opened, "nan", 0, 5)
        assert bad.error is not None
        assert "in [0, 1] from the agent" in bad.error
        assert len(bad.trials) == 1
        assert bad.final is None
        assert search_once(opened, "crash", 0, 5).error == "a bug of two lines"

    def test_a_winner_that_cannot_be_evaluated_is_a_failure_with_its_trials(
        self, opened, monkeypatch
    ):
        def no_memory(plan):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(opened.learner, "_evaluate_full", no_memory)
        record = search_once(opened, "random:finalists=0", 0, 4)
        assert record.error == "out of memory"
        assert len(record.trials) == 4
        assert record.final is None


class TestComparisons:
    def test_all_searches_are_made_task_by_task_and_seed_by_seed(self, tmp_path):
        jobs = jobs_of(comparison(tmp_path, tasks=(RECORDED, "digits-channels")))
        keys = [(j.task, j.seed, j.agent) for j in jobs[:4]]
        assert keys == [
            (RECORDED, 0, "uniform"), (RECORDED, 0, "local"),
            (RECORDED, 1, "uniform"), (RECORDED, 1, "local"),
        ]  # fmt: skip
        assert len(jobs) == 8

    def test_what_is_done_is_not_done_again_and_what_is_new_is_added(self, tmp_path):
        told: list[SearchRecord] = []
        run_comparison(comparison(tmp_path), told.append)
        assert len(told) == 4
        before = (tmp_path / RESULTS).read_bytes()
        run_comparison(comparison(tmp_path), told.append)
        assert len(told) == 4
        assert (tmp_path / RESULTS).read_bytes() == before
        run_comparison(comparison(tmp_path, agents=("uniform", "random")), told.append)
        assert [r.agent for r in told[4:]] == ["random", "random"]

    @pytest.mark.slow
    def test_processes_give_the_results_of_one(self, tmp_path):
        def found(folder: Path) -> dict:
            searches = read_results(folder / RESULTS).searches
            return {s.key: [(t.plan, t.reward) for t in s.trials] for s in searches}

        run_comparison(comparison(tmp_path / "one"))
        run_comparison(comparison(tmp_path / "two", where=Where(2)))
        assert found(tmp_path / "one") == found(tmp_path / "two")
        assert len(found(tmp_path / "two")) == 4

    def test_a_task_whose_data_is_missing_stops_no_other(self, tmp_path):
        tasks = ("resnet20-channels", RECORDED)
        file = run_comparison(comparison(tmp_path, tasks=tasks, seeds=(0,)))
        failed = [s for s in file.results.searches if s.error is not None]
        assert {s.task for s in failed} == {"resnet20-channels"}
        assert all("give --data DIR" in (s.error or "") for s in failed)
        assert sum(s.error is None for s in file.results.searches) == 2

    def test_a_missing_task_leaves_a_new_folder_that_can_be_read_and_reported(
        self, tmp_path, capsys
    ):
        out = tmp_path / "new"
        tasks = ("resnet20-channels", RECORDED)
        run_comparison(comparison(out, tasks=tasks, seeds=(0,), evaluations=4))
        arguments = ["compare", "--task", ",".join(tasks), "--agent", "uniform,local"]
        arguments += ["--seeds", "1", "--evaluations", "4", "--out", str(out)]
        assert run(arguments) == 1  # the report is there, and not all of what was asked for
        assert "give --data DIR" in capsys.readouterr().err
        searches = read_results(out / RESULTS).searches
        assert {s.task for s in searches if s.error is None} == {RECORDED}
        page = (out / "report.html").read_text()
        assert "resnet20-channels is left out: it could not be opened" in page
        assert "No search failed" not in page
        assert run(["compare", "--report", "--out", str(out)]) == 0
        assert (out / "report.html").read_text() == page
        assert run(["compare", "--report", "--task", "resnet20-channels", "--out", str(out)]) == 2
        assert "give --data DIR" in capsys.readouterr().err

    @pytest.mark.usefixtures("bad_agents")
    def test_a_failed_search_is_made_again_when_asked_for_again(self, tmp_path, monkeypatch):
        run_comparison(comparison(tmp_path, agents=("crash", "local")))
        assert sum(s.error is not None for s in read_results(tmp_path / RESULTS).searches) == 2
        monkeypatch.setitem(AGENTS, "crash", AGENTS["local"])
        run_comparison(comparison(tmp_path, agents=("crash", "local")))
        assert all(s.error is None for s in read_results(tmp_path / RESULTS).searches)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tasks": ("resnet20-chanels",)}, "did you mean 'resnet20-channels"),
            ({"agents": ("locl",)}, "did you mean 'local'"),
            ({"agents": ("local:speed=1",)}, "speed"),
            ({"agents": ("local:speed",)}, "Expected an agent like"),
            ({"agents": ("local:env.bugdet=1",)}, "got env.bugdet"),
            ({"agents": ("local:env.reward=haq",)}, "got env.reward"),
            ({"agents": ("local:env.budget=macs=0.9",)}, "within the task's macs=0.3"),
            ({"agents": ("local", "local")}, "distinct agents"),
            ({"seeds": ()}, "at least one"),
            ({"evaluations": 0}, "evaluations >= 1"),
        ],
    )
    def test_senseless_comparisons_are_rejected_before_any_search(self, tmp_path, changes, message):
        with pytest.raises(ValueError, match=message):
            run_comparison(comparison(tmp_path, **changes))
        assert not (tmp_path / RESULTS).exists()

    def test_requests_that_leave_the_problem_as_it_is_are_compared(self, tmp_path):
        agents = ("local:env.budget=macs=0.27:0.3", "local:env.action=absolute")
        file = run_comparison(comparison(tmp_path, agents=agents, seeds=(0,)))
        assert [s.error for s in file.results.searches] == [None, None]
        ratios = [t.cost_ratio["macs"] for t in file.results.searches[0].trials]
        assert all(0.27 <= ratio <= 0.3 for ratio in ratios)

    def test_an_agent_that_is_not_installed_stops_no_other(self, tmp_path, monkeypatch):
        def not_installed(**_):
            raise MissingDependencyError("Install it: pip install amc-compress[gp].")

        monkeypatch.setitem(AGENTS, "gp", not_installed)
        file = run_comparison(comparison(tmp_path, agents=("gp", "local")))
        errors = {s.agent: s.error for s in file.results.searches}
        assert errors == {"gp": "Install it: pip install amc-compress[gp].", "local": None}
        assert len(file.results.searches) == 4

    def test_a_task_that_has_changed_fails_before_it_is_searched_and_stops_no_other(self, tmp_path):
        run_comparison(comparison(tmp_path, agents=("uniform",), seeds=(0,)))
        path = tmp_path / RESULTS
        path.write_text(path.read_text().replace('"budget": "macs=0.3"', '"budget": "macs=0.4"'))
        file = run_comparison(comparison(tmp_path, agents=("uniform", "local"), seeds=(0,)))
        old, new = file.results.searches
        assert (old.agent, old.error) == ("uniform", None)
        assert (new.agent, new.trials) == ("local", ())
        assert "is not what it was" in (new.error or "")
        assert "other budget" in (new.error or "")

    def test_winners_of_recorded_tasks_have_no_validation(self, tmp_path):
        file = run_comparison(comparison(tmp_path, seeds=(0,)))
        finals = [s.final for s in file.results.searches]
        assert all(f is not None and f.validation is None for f in finals)

    def test_only_one_process_at_a_time_works_on_a_folder(self, tmp_path):
        with (
            only_one(tmp_path / RESULTS),
            pytest.raises(RunFolderError, match="Another process is working"),
        ):
            run_comparison(comparison(tmp_path))
        assert not (tmp_path / RESULTS).exists()

    def test_evaluations_of_another_task_are_not_mixed(self, tmp_path):
        prepare_task(find_task("digits-channels"), Places(), tmp_path)
        store = tmp_path / "judgements" / "digits-channels.jsonl"
        store.write_text(store.read_text().replace("round_to=2", "round_to=4"))
        with pytest.raises(RunFolderError, match="another task: other origin"):
            prepare_task(find_task("digits-channels"), Places(), tmp_path)

    def test_a_record_that_is_missing_stops_no_other(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "amc_compress.comparison.tasks.recorded_names", lambda: ["digits-channels"]
        )
        tasks = ("resnet20-bits-recorded", RECORDED)
        file = run_comparison(comparison(tmp_path, tasks=tasks, seeds=(0,), evaluations=2))
        failed = [s for s in file.results.searches if s.error is not None]
        assert {s.task for s in failed} == {"resnet20-bits-recorded"}
        assert all("amc record --task resnet20-bits`" in (s.error or "") for s in failed)

    def test_every_task_says_what_it_is(self):
        for name, task in TASKS.items():
            assert task.name == name
            assert task.title
            assert task.is_recorded == name.endswith("-recorded")


class TestCommand:
    def test_compares_reports_and_goes_on(self, tmp_path, capsys):
        out = str(tmp_path / "c")
        arguments = ["compare", "--task", RECORDED, "--agent", "uniform,local"]
        arguments += ["--agent", "random:finalists=0", "--seeds", "2", "--evaluations", "6"]
        arguments += ["--out", out]
        assert run(arguments) == 0
        printed = capsys.readouterr()
        assert printed.out.strip().endswith("report.html")
        assert printed.err.count("seed") == 6
        for number in range(1, 7):
            assert f"{number} of 6: {RECORDED}, " in printed.err
        report = (tmp_path / "c" / "report.html").read_text()
        assert "random:finalists=0" in report
        assert (tmp_path / "c" / "tables.md").exists()
        assert run([*arguments, "--quiet"]) == 0
        assert capsys.readouterr().err == ""
        results = tmp_path / "c" / RESULTS
        with results.open("a") as file:
            file.write('{"task": "cut sho')
        before = results.read_bytes()
        with only_one(results):  # another process goes on meanwhile
            assert run(["compare", "--report", "--out", out]) == 0
            assert "uniform" in (tmp_path / "c" / "tables.md").read_text()
            chosen = ["--agent", "local", "--agent", "random:finalists=0"]
            assert run(["compare", "--report", *chosen, "--out", out]) == 0
        assert results.read_bytes() == before
        tables = (tmp_path / "c" / "tables.md").read_text()
        assert "| local |" in tables
        assert "| uniform |" not in tables

    def test_lists_tasks_and_agents(self, capsys):
        assert run(["compare", "--list"]) == 0
        printed = capsys.readouterr().out
        for name in (*TASKS, *AGENTS):
            assert name in printed
        not_shipped = [
            line.split()[0] for line in printed.splitlines() if "not in this release" in line
        ]
        records = [name for name, task in TASKS.items() if task.is_recorded]
        assert not_shipped == [
            n for n in records if n.removesuffix("-recorded") not in recorded_names()
        ]

    def test_examples_of_the_help_name_only_tasks_that_can_be_opened(self):
        named = re.findall(r"--task (\S+-recorded)", inspect.getdoc(compare) or "")
        assert named
        for name in named:
            check_task(find_task(name), Places())

    def test_says_in_one_sentence_what_is_wrong(self, fails: Callable[..., str], tmp_path):
        out = ["--out", str(tmp_path / "c")]
        assert "did you mean 'ddpg'" in fails("compare", "--agent", "dpg", *out)
        assert "MODEL=FILE" in fails("compare", "--weights", "resnet20", *out)
        assert "Nothing to fine-tune" in fails(
            "compare", "--task", RECORDED, "--finetune-epochs", "1", *out
        )
        wrong = {
            "local; choose one of: uniform, random": ["--reference", "local"],
            "Expected --finetune-epochs with": ["--finetune-agent", "uniform"],
            "nothing would be fine-tuned": ["--finetune-seeds", "1"],
            ">= 0, got -1; 0 means": ["--finetune-epochs", "1", "--finetune-seeds", "-1"],
            "got local, unifrm; choose from: uniform, random": [
                "--finetune-epochs", "1", "--finetune-agent", "local,uniform,unifrm",
            ],
        }  # fmt: skip
        for message, options in wrong.items():
            said = fails("compare", "--agent", "uniform,random", *options, *out)
            assert message in said.replace("'", "")
            assert not (tmp_path / "c").exists()
        other = tmp_path / "c" / RESULTS
        other.parent.mkdir()
        other.write_text("something else\n")
        assert "results of a comparison" in fails("compare", "--agent", "uniform", *out)

    @pytest.mark.slow
    def test_winners_are_finetuned_and_tested_once_and_equal_plans_share_it(self, tmp_path, capsys):
        out = str(tmp_path / "c")
        arguments = ["compare", "--agent", "uniform,local", "--seeds", "2", "--evaluations", "4"]
        arguments += ["--finetune-epochs", "1", "--out", out]
        assert run(arguments) == 0
        finals = [s.final for s in read_results(tmp_path / "c" / RESULTS).searches]
        assert all(f is not None and f.test is not None and f.test > 0.5 for f in finals)
        assert {f.finetune_epochs for f in finals if f is not None} == {1}
        uniform = [f for f in finals if f is not None and f.plan == finals[0].plan]
        assert len({f.test for f in uniform}) == 1
        capsys.readouterr()
        assert run(arguments) == 0
        assert "fine-tuned" not in capsys.readouterr().err
        assert [s.final for s in read_results(tmp_path / "c" / RESULTS).searches] == finals
