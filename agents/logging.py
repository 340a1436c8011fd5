"""TensorBoard logging for all agents, with the episode as the x axis.

AMC's tags (``reward/last``, ``reward/best``, ``info/accuracy``, ``info/compress_ratio``,
``info/best_policy``, ``preserve_rate/i``) are kept, so its users find what they know. Another
metric than accuracy has its own name there; ``info/score`` is what is searched for.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amc_compress.agents.trials import Trial
from amc_env import CompressionEnv
from amc_env.render import plan_picture, plan_table
from amc_env.support.closing import Closing
from amc_env.validation.checks import checked

DEFAULT_PICTURE_EVERY = 25


@checked
class EpisodeLogger(Closing):
    """Writes a search to TensorBoard.

    A resumed search replays its episodes into a new event file; TensorBoard is told to
    forget the earlier points, so a curve is never drawn twice.

    Args:
        folder: Where the event file goes; one folder per search.
        picture_every: Episodes between two pictures of the plan; 0 draws none.

    Raises:
        ValueError: If ``picture_every`` is negative.
    """

    def __init__(self, folder: Path | str, *, picture_every: int = DEFAULT_PICTURE_EVERY) -> None:
        if picture_every < 0:
            raise ValueError(f"Expected picture_every >= 0, got {picture_every}.")
        with warnings.catch_warnings():
            # TensorBoard's own imports warn about their dependencies' versions.
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer: Any = SummaryWriter(str(folder), purge_step=0)
        self._picture_every = picture_every
        self._settings: dict[str, Any] = {}
        self._env: CompressionEnv | None = None

    def start(self, env: CompressionEnv, agent: str, settings: Mapping[str, Any]) -> None:
        """Writes what is known before the first episode: settings and the layout of the page.

        Args:
            env: The decision problem.
            agent: Name of the agent.
            settings: Its hyperparameters, seed included.
        """
        self._env = env
        self._settings = {"agent": agent, "budget": str(env.budget)} | dict(settings)
        rows = "\n".join(f"| {key} | {value} |" for key, value in self._settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", 0)
        self._writer.add_custom_scalars(_layout(env))

    def log(self, trial: Trial, best: Trial | None, scalars: Mapping[str, float]) -> None:
        """Writes one trial.

        Args:
            trial: What was just evaluated.
            best: The best trial within the budget so far, None if there is none yet.
            scalars: Further numbers by tag (exploration, losses).
        """
        assert self._env is not None, "start() comes first"
        env, step = self._env, trial.episode
        values = trial.plan.values_for(env.decisions)
        numbers = {
            "reward/last": trial.reward,
            **({} if best is None else {"reward/best": best.reward}),
            **{f"info/{name}": n for name, n in env.metric.named(trial.score).items()},
            "info/compress_ratio": trial.cost_ratio[_main_cost(env)],
            "time/seconds_per_episode": trial.seconds,
            **{f"cost_ratio/{name}": ratio for name, ratio in trial.cost_ratio.items()},
            **{f"preserve_rate/{i}": value for i, value in enumerate(values)},
            **({} if trial.measured is None else {"stages/share": trial.share}),
            **scalars,
        }
        for tag, number in numbers.items():
            self._writer.add_scalar(tag, number, step)
        if best is trial:
            self._write_best(trial)
        if self._picture_every and step % self._picture_every == 0:
            picture = plan_picture(env.graph, env.decisions, values)
            self._writer.add_image("plan/last", picture, step, dataformats="HWC")

    def finish(self, best: Trial) -> None:
        """Writes the best plan's picture, and the hyperparameters with the final metrics.

        Args:
            best: The plan that the search returns, with its final reward and score.
        """
        assert self._env is not None, "start() comes first"
        env = self._env
        values = best.plan.values_for(env.decisions)
        if self._picture_every:
            picture = plan_picture(env.graph, env.decisions, values)
            step = max(0, best.episode)  # what a warm start knew is older than episode 0
            self._writer.add_image("plan/best", picture, step, dataformats="HWC")
        numbers = {"reward": best.reward, **env.metric.named(best.score), **best.cost_ratio}
        metrics = {f"final/{name}": number for name, number in numbers.items()}
        self._write_hyperparameters(metrics)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()

    def _write_best(self, trial: Trial) -> None:
        assert self._env is not None
        values = trial.plan.values_for(self._env.decisions)
        table = plan_table(self._env.graph, self._env.decisions, values, self._env.costs)
        reward = f"{trial.reward:{self._env.metric.reward_form}}"
        text = f"reward {reward}, {trial.source}\n\n```\n{table}\n```"
        self._writer.add_text("info/best_policy", text, trial.episode)

    def _write_hyperparameters(self, metrics: Mapping[str, float]) -> None:
        """Writes to the same run, unlike ``SummaryWriter.add_hparams``, which opens a new one."""
        from torch.utils.tensorboard.summary import hparams

        plain = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in self._settings.items()
        }
        for summary in hparams(plain, dict(metrics)):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)
        for tag, number in metrics.items():
            self._writer.add_scalar(tag, number, 0)


def _main_cost(env: CompressionEnv) -> str:
    """The cost that "the compression ratio" refers to: the first one with a budget."""
    return next(iter(env.budget.bounds))


def _layout(env: CompressionEnv) -> dict[str, dict[str, list[Any]]]:
    """Layout of TensorBoard's custom scalars: tags that share a chart."""
    rates = [f"preserve_rate/{i}" for i in range(env.n_decisions)]
    return {
        "search": {
            "reward": ["Multiline", ["reward/last", "reward/best"]],
            env.metric.name: ["Multiline", [f"info/{env.metric.name}"]],
            "cost ratio": ["Multiline", [f"cost_ratio/{name}" for name in env.costs]],
            "plan": ["Multiline", rates],
        },
        "agent": {
            "exploration": ["Multiline", ["exploration/sigma"]],
            "losses": ["Multiline", ["train/critic_loss", "train/actor_loss"]],
            "seconds per episode": ["Multiline", ["time/seconds_per_episode"]],
        },
    }
