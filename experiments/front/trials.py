"""What a search has evaluated, as a sequence and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from amc_compress.runs.storage.trials import RecordedTrial
from amc_env.support.optional import needed

if TYPE_CHECKING:
    import pandas as pd


class Trials(Sequence[RecordedTrial]):
    """Every evaluated plan, in the order of the search."""

    def __init__(self, trials: Sequence[RecordedTrial]) -> None:
        self._trials = tuple(trials)

    def __len__(self) -> int:
        return len(self._trials)

    def __iter__(self) -> Iterator[RecordedTrial]:
        return iter(self._trials)

    @overload
    def __getitem__(self, index: int) -> RecordedTrial: ...
    @overload
    def __getitem__(self, index: slice) -> Trials: ...
    def __getitem__(self, index: int | slice) -> RecordedTrial | Trials:
        if isinstance(index, slice):
            return Trials(self._trials[index])
        return self._trials[index]

    def __repr__(self) -> str:
        return f"<{len(self)} trials>"

    def rows(self) -> list[dict[str, Any]]:
        """Returns a row per trial: its number, score and costs, then the parameters of its plan.

        Columns are named as Optuna names them: ``params_`` stands before the key of a decision.
        """
        return [
            {
                "number": trial.episode,
                "score": trial.score,
                "reward": trial.reward,
                **{f"cost_{name}": cost for name, cost in trial.cost.items()},
                **{f"cost_ratio_{name}": ratio for name, ratio in trial.cost_ratio.items()},
                "within_budget": trial.within_budget,
                "source": trial.source,
                **({"stage": trial.stage, "samples": trial.samples} if trial.samples else {}),
                "seconds": trial.seconds,
                **{f"params_{key}": value for key, value in trial.plan.items()},
            }
            for trial in self
        ]

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the rows as a table of pandas.

        Raises:
            MissingDependencyError: Without pandas.
        """
        pandas = needed(
            "pandas",
            "Expected pandas for a table of the trials, found none; `pip install pandas`, or "
            "take trials.rows().",
        )
        table: pd.DataFrame = pandas.DataFrame(self.rows())
        return table
