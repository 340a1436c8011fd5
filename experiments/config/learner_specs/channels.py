"""Learners that cut channels, each with a way of its own to select them."""

from __future__ import annotations

from typing import Any, ClassVar

from amc_compress.config.learner_specs.base import LearnerSpec

_GRID = ("round_to", "min_ratio")


class ChannelSpec(LearnerSpec):
    """Channel pruning by a criterion."""

    title = "Channel pruning"
    path = "channel_pruning:ChannelPruning"
    takes: ClassVar[tuple[str, ...]] = (*_GRID, "criterion")
    prunes = True

    def check(self) -> None:
        """Checks that channels or branches are decided about."""
        super().check()
        if self.options.min_ratio == 1.0 and not self.options.depth:
            raise ValueError(
                f"Expected --min-ratio below 1 with --learner {self.name}, got 1, with which every "
                f"channel stays; with --depth it decides about residual branches alone."
            )

    def own_options(self) -> dict[str, Any]:
        """Returns the grid, how channels are ranked, and whether depth is decided."""
        if not self.options.depth:
            return super().own_options()
        depth = {"decide_depth": True, "depth_scores": self.options.depth_scores}
        return super().own_options() | depth


class GroupLassoSpec(ChannelSpec):
    """Channel pruning by group lasso."""

    title = "Channel pruning by group lasso"
    path = "channel_pruning:GroupLassoPruning"
    takes = _GRID


class RemasteredSpec(ChannelSpec):
    """Channel pruning by lasso."""

    title = "Channel pruning by lasso"
    path = "channel_pruning:RemasteredPruning"
    takes = _GRID


class DiscriminationSpec(ChannelSpec):
    """Channel pruning that keeps what tells the classes apart."""

    title = "Discrimination-aware channel pruning"
    path = "channel_pruning.discrimination.learner:DiscriminationAwarePruning"
    takes = (*_GRID, "block_steps")

    def own_options(self) -> dict[str, Any]:
        """Returns the grid, and how channels are selected."""
        return super().own_options() | {"stages": self.options.discrimination_stages}
