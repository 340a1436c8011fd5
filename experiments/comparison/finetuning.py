"""The winners of a comparison, fine-tuned, and the test set once, by the finished network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from amc_env import CompressionPlan
from experiments.comparison.records import FinalJudgement, ResultsFile, SearchRecord
from experiments.comparison.tasks import (
    ComparisonTask,
    Places,
    build_env,
    find_task,
    open_data,
    original_network,
)
from learners import Learner
from learners.quantization.preparation import QUANTIZED_GRADIENT_CLIP
from learners.training import TrainingConfig, evaluate

Tell = Callable[[SearchRecord], None]


@dataclass(frozen=True)
class Finetuning:
    """How winners are trained.

    Args:
        epochs: Passes over the training images, taught by the original network.
        agents: Labels of the agents whose winners are trained; all if empty.
        seeds: Seeds of the searches whose winners are trained; all if empty.
        tasks: Whose winners are trained; those of all if empty.
    """

    epochs: int
    agents: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"Expected epochs >= 1, got {self.epochs}.")

    def wants(self, record: SearchRecord) -> bool:
        """Whether the winner of a search is to be trained and was not."""
        return (
            record.final is not None
            and record.final.test is None
            and not find_task(record.task).is_recorded
            and (not self.agents or record.agent in self.agents)
            and (not self.seeds or record.seed in self.seeds)
            and (not self.tasks or record.task in self.tasks)
        )


def finetune_winners(
    file: ResultsFile, places: Places, settings: Finetuning, tell: Tell = lambda record: None
) -> None:
    """Trains the winners that were not trained, one after the other; each is noted at once.

    Equal plans of a task are trained once: the training does not depend on who found them.

    Args:
        file: The results.
        places: Where data and weights are.
        settings: How, and which.
        tell: Called with every record that is complete.

    Raises:
        InputDataError: If data or weights are missing.
    """
    todo = [record for record in file.results.searches if settings.wants(record)]
    for name in dict.fromkeys(record.task for record in todo):
        trainer = _Trainer(find_task(name), places, settings.epochs)
        for record in (r for r in todo if r.task == name):
            assert record.final is not None  # noqa: S101
            done = _trained_before(file, name, record.final.plan) or trainer.train(record.final)
            complete = replace(record, final=done)
            file.add(complete)
            tell(complete)


def _trained_before(file: ResultsFile, task: str, plan: tuple[int, ...]) -> FinalJudgement | None:
    """What an equal plan of the same task came to."""
    for other in file.results.searches:
        final = other.final if other.task == task else None
        if final is not None and final.plan == plan and final.test is not None:
            return final
    return None


class _Trainer:
    """Trains networks of one task."""

    def __init__(self, task: ComparisonTask, places: Places, epochs: int) -> None:
        self._env = build_env(task, places)
        self._splits = open_data(task, places, seed=0)
        self._teacher = original_network(task, places, self._splits)
        self._config = TrainingConfig(
            epochs=epochs,
            learning_rate=task.learning_rate,
            gradient_clip=None if task.kind == "channels" else QUANTIZED_GRADIENT_CLIP,
        )

    def train(self, final: FinalJudgement) -> FinalJudgement:
        """Fine-tunes a plan and touches the test set once."""
        decisions = self._env.decisions
        values = [d.choices[i] for d, i in zip(decisions, final.plan, strict=True)]
        learner = self._env.learner
        assert isinstance(learner, Learner)  # noqa: S101
        network = learner.compress(CompressionPlan.from_values(decisions, values))
        started = time.process_time()
        result = learner.finetune(
            network, self._splits.train, config=self._config, teacher=self._teacher
        )
        return replace(
            final,
            finetuned_validation=result.best_accuracy,
            test=evaluate(network, self._splits.test, precision="fp32"),
            finetune_seconds=round(time.process_time() - started, 1),
        )
