"""Progressive compression: the budget in stages, each searched from the network of the last.

At high ratios the network that the plans of a single search are evaluated by is broken, and the
statistics that repair it are those of a network twice its size. Here every stage takes away a
little, fine-tunes, and searches again from the result, as the authors of AMC advise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc_compress.agents.base import Agent
from amc_compress.agents.trials import Trial
from amc_compress.config.stage_budgets import stage_budgets
from amc_compress.evaluations.where import Where
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_compress.learners.training.identity import digest_of
from amc_compress.models import load_weights
from amc_compress.runs.given import agent_text, made_agent
from amc_compress.runs.networks import read_shape, save_network
from amc_compress.runs.storage.stored_state import blamed_on
from amc_compress.runs.storage.trials import TrialRecorder, read_trials
from amc_compress.stages.composition import Composition
from amc_compress.user_code import place_of
from amc_env import Budget, CompressionEnv, CompressionPlan, Evaluations, Outcome
from amc_env.env import DEFAULT_ACTION_MAPPING
from amc_env.errors import RunFolderError
from amc_env.files import read_document, write_json
from amc_env.validation.checks import checked
from amc_env.validation.shapes import renamed_keys

TRIALS = "trials.jsonl"
_NETWORK = "network.safetensors"
_FACTS = "stage.json"
_ASKED = "asked.json"
_OLD_NAMES = {"accuracy": "score", "finetuned_accuracy": "finetuned_score"}

MakeLearner = Callable[[nn.Module], ChannelPruning]


"""Each is a search and a training of its own; the budgets of more could hardly differ."""


@checked
@dataclass(frozen=True)
class StageFacts:
    """Result of one stage; costs are shares of the original's.

    Args:
        budget: The bounds it had.
        n_trials: Plans evaluated.
        score: Of the best one, before any training.
        cost_ratio: Its costs.
        finetuned_score: Validation score after the fine-tuning; None for the last stage,
            and without epochs.
        seconds: Search and fine-tuning.
        cpu_seconds: Of the search.
    """

    budget: str
    n_trials: int
    score: float
    cost_ratio: dict[str, float]
    finetuned_score: float | None
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class ProgressiveResult:
    """What :func:`progressive_compression` returns; plans and costs are those of the original.

    Args:
        network: Within the budget, in ``eval`` mode; not fine-tuned since its last cut.
        plan: Of the original.
        kept: Channel group -> sorted units of the original that stay, and branches that do not; the
            original's slice by them takes the weights of ``network``.
        best: The plan of the last stage, evaluated.
        uniform: The uniform plan of the last stage, evaluated.
        stages: The result of every stage.
        learner: Of the last stage, to fine-tune with.
    """

    network: nn.Module
    plan: CompressionPlan
    kept: dict[str, Tensor]
    best: Outcome
    uniform: Outcome
    stages: tuple[StageFacts, ...]
    learner: ChannelPruning


def progressive_compression(
    make_learner: MakeLearner,
    model: nn.Module,
    train_loader: Batches,
    budget: Budget | str,
    *,
    stages: int | Sequence[float] = 3,
    agent: str | Agent = "ddpg-one-shot",
    episodes: int = 100,
    seed: int = 0,
    action: str = DEFAULT_ACTION_MAPPING,
    reward: str = "accuracy",
    epochs_between: int = 3,
    config: TrainingConfig | None = None,
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    progress: bool = False,
    parallel: int = 1,
    where: Where | None = None,
) -> ProgressiveResult:
    """Reaches a budget in stages: search, cut, fine-tune; search the next one from there.

    Args:
        make_learner: Prepares a learner on a network; deterministic, if the run is to be resumed.
        model: The original network, not changed.
        train_loader: Training batches.
        budget: Bounds as shares of the original's costs, of the finished network.
        stages: See :func:`stage_budgets`.
        agent: What searches every stage, or its name.
        episodes: Plans it evaluates in every stage.
        seed: Of the searches.
        action: Action mapping, see ``CompressionEnv``.
        reward: Name from ``amc_env.REWARDS``; costs in it are shares of the stage's network.
        epochs_between: Of the fine-tuning after every stage but the last, which is left to the
            caller; 0 for none.
        config: All its other settings.
        teacher: Network to distil from, usually the original one.
        folder: Where stages are kept: killed at any moment and called again with equal arguments,
            the result is the same.
        progress: Whether to show progress bars.
        parallel: Plans under way at a time.
        where: What evaluates them; this process if None.

    Raises:
        InfeasibleBudgetError: If no plan meets the budget.
        PlanMismatchError: If the groups of a network that has been cut cannot be found again.
        RunFolderError: If the folder holds stages of other arguments.
        ValueError: If an option has no such value.
    """
    original = make_learner(model)
    *on_the_way, last = stage_budgets(CompressionEnv(original, budget).budget, stages)
    run = _Run(
        make_learner, model, original, agent, episodes, seed, action, reward,
        train_loader, epochs_between, config, teacher, progress, parallel, where or Where(),
    )  # fmt: skip
    network, before, facts = model, Composition(run.original, {}), list[StageFacts]()
    for index, bounds in enumerate(on_the_way):
        place = None if folder is None else folder / str(index + 1)
        network, kept, done = run.stage(network, before, bounds, place)
        facts.append(done)
        before = Composition(run.original, kept)
    learner = run.learner(network, before)
    place = None if folder is None else folder / str(len(on_the_way) + 1)
    found = run.search(learner, before, last, place)
    return ProgressiveResult(
        network=learner.compress(found.stage_plan),
        plan=found.best.plan,
        kept=before.with_kept(learner.kept_units(found.stage_plan)),
        best=found.best,
        uniform=found.uniform,
        stages=(*facts, found.facts),
        learner=learner,
    )


@dataclass(frozen=True)
class _Found:
    """The result of one search; ``stage_plan`` is that of the stage's own network."""

    stage_plan: CompressionPlan
    best: Outcome
    uniform: Outcome
    facts: StageFacts


@dataclass(frozen=True)
class _Run:
    """What all stages have in common; see :func:`progressive_compression`."""

    make_learner: MakeLearner
    model: nn.Module
    original: ChannelPruning
    agent: str | Agent
    episodes: int
    seed: int
    action: str
    reward: str
    train_loader: Batches
    epochs: int
    config: TrainingConfig | None
    teacher: nn.Module | None
    progress: bool
    parallel: int
    where: Where

    def learner(self, network: nn.Module, before: Composition) -> ChannelPruning:
        """Prepares the learner on the network of the last stage; at first it is the original."""
        if network is self.model:
            return self.original
        learner = self.make_learner(network)
        learner.decisions = before.next_decisions(learner.decisions, learner.graph.branches)
        return learner

    def stage(
        self, network: nn.Module, before: Composition, budget: Budget, place: Path | None
    ) -> tuple[nn.Module, dict[str, Tensor], StageFacts]:
        """Searches, cuts and fine-tunes; a stage that is complete is read."""
        if place is not None and (place / _NETWORK).exists():
            self.note(budget, place)  # a search notes what it is asked for itself
        else:
            learner = self.learner(network, before)
            found = self.search(learner, before, budget, place)
            network, facts = self.finetune(learner, found, place)
            kept = before.with_kept(learner.kept_units(found.stage_plan))
            if place is None:
                return network, kept, facts
            write_json(place / _FACTS, asdict(facts))
            # Last, because it is what shows that the stage is complete.
            save_network(network, place / _NETWORK, plan=found.best.plan, kept=kept)
        # From the file in any case, so that a resumed run continues with the same.
        kept = read_shape(place / _NETWORK).kept
        network = self.original.traced.slice(kept).cpu().eval()
        load_weights(network, place / _NETWORK)
        facts_row = read_document(place / _FACTS, shape=dict[str, Any])
        with blamed_on(place / _FACTS):
            return network, kept, StageFacts(**renamed_keys(facts_row, _OLD_NAMES))

    def note(self, budget: Budget, place: Path) -> None:
        """Writes what a stage was asked for, or compares with what the first run wrote.

        Raises:
            RunFolderError: If that was something else.
        """
        asked = {
            "budget": str(budget), "agent": agent_text(self.agent), "episodes": self.episodes,
            "seed": self.seed, "action": self.action, "reward": self.reward,
            **({"parallel": self.parallel} if self.parallel > 1 else {}),
            "epochs_between": self.epochs, "network": digest_of(self.model),
        }  # fmt: skip
        path = place / _ASKED
        if not path.exists():
            place.mkdir(parents=True, exist_ok=True)
            write_json(path, asked)
            return
        before = read_document(path, shape=dict[str, Any])
        if names := [name for name in asked if before.get(name) != asked[name]]:
            raise RunFolderError(
                f"The stage in {place} was searched for something else: "
                f"{', '.join(f'{n} {before.get(n)} there, {asked[n]} now' for n in names)}. "
                f"Repeat what it was asked for, or choose another folder."
            )

    def search(
        self, learner: ChannelPruning, before: Composition, budget: Budget, place: Path | None
    ) -> _Found:
        """Searches one stage; a search that was interrupted is replayed."""
        if place is not None:
            self.note(budget, place)
        with self.where.evaluations(learner) as service:
            return self._search(learner, service, before, budget, place)

    def _search(
        self,
        learner: ChannelPruning,
        service: Evaluations,
        before: Composition,
        budget: Budget,
        place: Path | None,
    ) -> _Found:
        wall, cpu = time.perf_counter(), time.process_time()
        env = CompressionEnv(
            learner,
            before.budget(budget),
            action=self.action,
            reward=self.reward,
            evaluations=service,
        )
        recorder = None if place is None else _Recorder(env, before, place)
        try:
            result = made_agent(self.agent).search(
                env,
                self.episodes,
                self.seed,
                on_trial=recorder,
                progress=self.progress,
                parallel=self.parallel,
            )
        except (Exception, SystemExit) as error:
            if recorder is not None and place_of(error) is not None:
                recorder.trials.set_aside()  # the agent's code will be another
            raise
        best = before.outcome(env.evaluate(result.plan), env.decisions)
        uniform = before.outcome(env.evaluate(env.uniform_plan()), env.decisions)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if place is not None:  # seconds of a resumed search are those of its trials
            trials = read_trials(place / TRIALS)
            wall, cpu = sum(t.seconds for t in trials), sum(t.cpu_seconds for t in trials)
        facts = StageFacts(
            budget=str(budget),
            n_trials=len(result.trials),
            score=best.score,
            cost_ratio=best.cost_ratio,
            finetuned_score=None,
            seconds=round(wall, 3),
            cpu_seconds=round(cpu, 3),
        )
        return _Found(result.plan, best, uniform, facts)

    def finetune(
        self, learner: ChannelPruning, found: _Found, place: Path | None
    ) -> tuple[nn.Module, StageFacts]:
        """Cuts the network of a stage and lets it recover a little."""
        network = learner.compress(found.stage_plan)
        if not self.epochs:
            return network.cpu(), found.facts
        result = learner.finetune(
            network,
            self.train_loader,
            epochs=self.epochs,
            config=self.config,
            teacher=self.teacher,
            progress=self.progress,
            checkpoint_dir=None if place is None else place / "checkpoints",
            resume=place is not None,
        )
        facts = replace(
            found.facts,
            finetuned_score=result.best_score,
            seconds=round(found.facts.seconds + result.seconds, 3),
        )
        return network.cpu(), facts


class _Recorder:
    """Writes the trials of a stage; the environment knows those written before."""

    def __init__(self, env: CompressionEnv, before: Composition, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._env, self._before = env, before
        self.trials = TrialRecorder(place / TRIALS, before.cost, env.metric)
        for trial in self.trials.known:
            plan = before.in_smaller(CompressionPlan(trial.plan), env.decisions)
            env.remember(plan, trial.score, trial.failure)

    def __call__(self, trial: Trial) -> None:
        """Notes a trial in terms of the original network."""
        plan = self._before.in_original(trial.plan, self._env.decisions)
        self.trials(replace(trial, plan=plan, cost_ratio=self._before.ratio(plan)))
