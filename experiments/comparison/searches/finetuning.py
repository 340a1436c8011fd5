"""Fine-tunes the winners of a comparison and tests the finished networks once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from amc_compress.comparison.records import (
    FinalEvaluation,
    Results,
    ResultsFile,
    SearchKey,
    SearchRecord,
)
from amc_compress.comparison.tasks import (
    ComparisonTask,
    Places,
    build_env,
    find_task,
    open_data,
    original_network,
    training_of,
)
from amc_compress.learners import Learner
from amc_compress.learners.training.loop import evaluate
from amc_env import CompressionPlan

Tell = Callable[[SearchRecord], None]
Complain = Callable[[SearchRecord, Exception], None]


@dataclass(frozen=True)
class Finetuning:
    """Settings of the fine-tuning of winners.

    Args:
        epochs: Passes over the training images, taught by the original network.
        agents: Labels of the agents whose winners are trained; all if empty.
        seeds: Seeds of the searches whose winners are trained; all if empty.
        tasks: Whose winners are trained; those of all if empty.
        evaluations: Evaluations of the searches whose winners are trained; any if None.
    """

    epochs: int
    agents: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()
    evaluations: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"Expected epochs >= 1, got {self.epochs}.")

    def covers(self, task: str, agent: str, seed: int, evaluations: int) -> bool:
        """Whether the winner of such a search is asked for."""
        return (
            (not self.tasks or task in self.tasks)
            and (not self.agents or agent in self.agents)
            and (not self.seeds or seed in self.seeds)
            and self.evaluations in (None, evaluations)
            and find_task(task).is_trained
        )

    def wants(self, record: SearchRecord) -> bool:
        """Whether the winner of a search is to be trained and was not."""
        final = record.final
        return final is not None and final.test is None and self.covers(*record.key)

    def check(self, results: Results, asked: Iterable[SearchKey] = ()) -> None:
        """Rejects another number of epochs than the winners of a task were trained for.

        Where a file does not say how long that was, as older ones do not, nothing is added.

        Args:
            results: What is known before.
            asked: Keys of the searches that are about to be made or are there already.

        Raises:
            ValueError: If columns of the report would mix lengths of training.
        """
        known = {search.key: search.final for search in results.searches}
        tasks = {
            key[0]
            for key in dict.fromkeys([*known, *asked])
            if self.covers(*key) and self._would_mix(known.get(key))
        }
        for search in results.searches:
            final = search.final
            if final is None or final.test is None or search.task not in tasks:
                continue
            if final.finetune_epochs != self.epochs:
                raise ValueError(
                    f"Expected the winners of {search.task} to be fine-tuned for "
                    f"{self.epochs} epochs each, got {search.agent}, seed {search.seed}, which was "
                    f"for {final.finetune_epochs or 'a number that was not noted'}: repeat that "
                    f"--finetune-epochs, or compare in a new folder."
                )

    def _would_mix(self, final: FinalEvaluation | None) -> bool:
        """Whether a winner that is asked for is not known to be there, of this length or any."""
        if final is None or final.test is None:
            return True
        return final.finetune_epochs not in (None, self.epochs)


def finetune_winners(
    file: ResultsFile,
    places: Places,
    settings: Finetuning,
    tell: Tell = lambda record: None,
    complain: Complain = lambda record, error: None,
) -> None:
    """Trains the winners that were not trained, one after the other; each is noted at once.

    Equal plans of a task are trained once: the training does not depend on who found them. A
    training that fails stops no other.

    Args:
        file: The results.
        places: Where data and weights are.
        settings: How, and which.
        tell: Called with every record that is complete.
        complain: Called with every record that could not be completed, and why.

    Raises:
        ValueError: As :meth:`Finetuning.check`.
        OSError: If a record cannot be written.
    """
    settings.check(file.results)
    todo = [record for record in file.results.searches if settings.wants(record)]
    for name in dict.fromkeys(record.task for record in todo):
        winners = [record for record in todo if record.task == name]
        try:
            trainer = _Trainer(find_task(name), places, settings.epochs)
        except Exception as error:
            for record in winners:
                complain(record, error)
            continue
        for record in winners:
            assert record.final is not None  # noqa: S101
            try:
                done = _trained_before(file, record, settings.epochs)
                done = done or trainer.train(record.final)
            except Exception as error:
                complain(record, error)
                continue
            complete = replace(record, final=done)
            file.add(complete)
            tell(complete)


def _trained_before(file: ResultsFile, record: SearchRecord, epochs: int) -> FinalEvaluation | None:
    """Result of an equal plan of the same task, trained for as many epochs."""
    assert record.final is not None  # noqa: S101
    for other in file.results.searches:
        final = other.final if other.task == record.task else None
        if (
            final is not None
            and final.plan == record.final.plan
            and final.test is not None
            and final.finetune_epochs == epochs
        ):
            return final
    return None


class _Trainer:
    """Trains networks of one task."""

    def __init__(self, task: ComparisonTask, places: Places, epochs: int) -> None:
        self._env = build_env(task, places)
        self._splits = open_data(task, places, seed=0)
        self._teacher = original_network(task, places, self._splits)
        self._config = training_of(task, epochs)

    def train(self, final: FinalEvaluation) -> FinalEvaluation:
        """Fine-tunes a plan and touches the test set once."""
        decisions = self._env.decisions
        learner = self._env.learner
        assert isinstance(learner, Learner)  # noqa: S101
        network = learner.compress(CompressionPlan.from_choices(decisions, final.plan))
        started = time.process_time()
        result = learner.finetune(
            network, self._splits.train, config=self._config, teacher=self._teacher
        )
        return replace(
            final,
            finetuned_validation=result.best_score,
            test=evaluate(network, self._splits.test, task=learner.task, precision="fp32"),
            finetune_seconds=round(time.process_time() - started, 1),
            finetune_epochs=self._config.epochs,
        )
