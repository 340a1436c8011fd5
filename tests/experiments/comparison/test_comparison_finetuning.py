"""Winners that are fine-tuned: those asked for, all for as long, and none stops another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.runs.comparisons import facts, search

from amc_compress.cli import FAILED, run
from amc_compress.comparison.records import RESULTS, FinalEvaluation, Results, ResultsFile
from amc_compress.comparison.searches import finetuning
from amc_compress.comparison.searches.finetuning import Finetuning, finetune_winners
from amc_compress.comparison.tasks import Places

TASK = "digits-channels"
FINAL = FinalEvaluation(plan=(0, 0), validation=0.7)


def winner(agent: str = "local", seed: int = 0, *, task: str = TASK, plan=(0, 0), epochs=None):
    final = FinalEvaluation(plan, 0.7)
    if epochs is not None:
        final = replace(
            final, finetuned_validation=0.9, test=0.8, finetune_epochs=epochs or None
        )  # 0: by a release that did not note it
    return search(task, agent, seed, [0.7], final=final)


def results(*searches) -> Results:
    return Results({TASK: facts(TASK)}, searches)


class FakeTrainer:
    """Trains nothing; a plan that begins with 3 fails."""

    def __init__(self, task, places, epochs):
        self.epochs = epochs

    def train(self, final):
        if final.plan[0] == 3:
            raise RuntimeError("loss\nis NaN")
        return replace(final, finetuned_validation=0.9, test=0.8, finetune_epochs=self.epochs)


def file_of(tmp_path, *searches) -> ResultsFile:
    file = ResultsFile(tmp_path / RESULTS)
    file.add_task(facts(TASK))
    for record in searches:
        file.add(record)
    return file


def test_only_winners_of_the_searches_that_were_asked_for_are_trained():
    settings = Finetuning(1, ("local",), (0, 1), (TASK,), evaluations=1)
    assert settings.wants(winner())
    assert not settings.wants(winner("random"))
    assert not settings.wants(winner(seed=2))
    assert not settings.wants(winner(task="resnet20-channels"))
    assert not settings.wants(winner(epochs=1))
    assert not settings.wants(replace(winner(), evaluations=2))
    assert not Finetuning(1).wants(winner(task=f"{TASK}-recorded"))
    assert Finetuning(1).wants(winner(task="resnet20-channels"))


def test_lengths_of_training_are_not_mixed_in_a_task():
    trained = winner(epochs=1)
    Finetuning(1, ("local", "random")).check(results(trained, winner("random")))
    message = r"for 5 epochs each, got local, seed 0, which was for 1: repeat"
    for known, asked in (
        (results(trained), ()),  # trained for another length
        (results(trained, winner("random")), ()),  # another one would be trained longer
        (results(trained), [(TASK, "random", 0, 1)]),  # one that is yet to be searched
    ):
        with pytest.raises(ValueError, match=message):
            Finetuning(5).check(known, asked)
    Finetuning(5, tasks=("resnet20-channels",)).check(results(trained, winner("random")))


def test_lengths_that_were_not_noted_are_left_alone_and_nothing_is_added_to_them():
    old = winner(epochs=0)
    Finetuning(5).check(results(old))
    with pytest.raises(ValueError, match="for a number that was not noted"):
        Finetuning(5).check(results(old, winner("random")))


def test_a_training_that_fails_stops_no_other_and_the_length_is_noted(monkeypatch, tmp_path):
    monkeypatch.setattr(finetuning, "_Trainer", FakeTrainer)
    file = file_of(tmp_path, winner("bad", plan=(3, 0)), winner("good", plan=(1, 0)))
    told, failed = [], []
    complain = lambda record, error: failed.append((record.agent, str(error)))  # noqa: E731
    finetune_winners(file, Places(), Finetuning(2), told.append, complain)
    assert failed == [("bad", "loss\nis NaN")]
    assert [(r.agent, r.final.test, r.final.finetune_epochs) for r in told] == [("good", 0.8, 2)]
    assert {s.agent: s.final.test for s in file.results.searches} == {"bad": None, "good": 0.8}


def test_a_task_that_cannot_be_opened_fails_for_all_its_winners(tmp_path):
    task = "resnet20-channels"
    file = file_of(tmp_path, winner(task=task), winner(task=task, seed=1))
    failed = []
    complain = lambda record, error: failed.append((record.seed, str(error)))  # noqa: E731
    finetune_winners(file, Places(), Finetuning(1), complain=complain)
    assert [seed for seed, _ in failed] == [0, 1]
    assert all("give --data DIR" in text for _, text in failed)


@pytest.mark.slow
def test_the_report_is_written_whatever_becomes_of_the_training(monkeypatch, tmp_path, capsys):
    class Fails(FakeTrainer):
        def train(self, final):
            raise RuntimeError("loss\nis NaN")

    monkeypatch.setattr(finetuning, "_Trainer", Fails)
    out = tmp_path / "c"
    arguments = ["compare", "--agent", "uniform,random", "--seeds", "1", "--evaluations", "2"]
    arguments += ["--finetune-epochs", "1", "--finetune-agent", "uniform,random", "--quiet"]
    assert run([*arguments, "--out", str(out)]) == FAILED
    said = capsys.readouterr().err
    assert f"{TASK}, uniform, seed 0: not fine-tuned: loss is NaN" in said
    assert said.count("not fine-tuned") == 2
    assert (out / "report.html").exists()
