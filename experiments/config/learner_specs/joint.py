"""Learners that decide several kinds of compression at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from amc_compress.config.learner_specs.base import Images, LearnerSpec
from amc_compress.config.learner_specs.bits import QUANTIZERS, UniformSpec, middle
from amc_compress.config.learner_specs.channels import ChannelSpec
from amc_compress.config.learner_specs.sparse import SparseSpec
from amc_compress.config.option import flag
from amc_env.costs.storage import OFF_BITS

if TYPE_CHECKING:
    from torch import nn

    from amc_compress.learners.base import Learner
    from amc_compress.learners.tasks.task import Task


class JointSpec(LearnerSpec):
    """Channels and bits, and densities and depth if wanted."""

    title = "Channel pruning and quantization"
    path = "joint.learner:JointCompression"
    reads: ClassVar[tuple[str, ...]] = tuple(QUANTIZERS)

    @property
    def prunes(self) -> bool:  # type: ignore[override]
        """Whether channels are cut, or branches left out."""
        return self.options.min_ratio < 1.0 or self.options.depth

    @property
    def sparsifies(self) -> bool:
        """Whether densities are decided too."""
        return self.options.density

    @property
    def quantization(self) -> str:
        """The quantizer that was chosen."""
        return self.options.quantizer

    @property
    def bits(self) -> UniformSpec:
        """The quantizer as a learner of its own."""
        return QUANTIZERS[self.quantization](self.name, self.options)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The learner itself, and its quantizer."""
        return (self.name, self.quantization)

    def check(self) -> None:
        """Checks that options of densities come with densities."""
        super().check()
        for name in ("pattern", "min_density", "repair"):
            if not self.sparsifies and self.is_given(name):
                raise ValueError(
                    f"{flag(name)} has no effect with --learner {self.name} without --density, "
                    f"which decides densities as well."
                )

    def default_budget(self) -> str:
        """Returns half of the MACs, and 15% of the bytes with 4 bits."""
        weights = self.bits.weights
        # What weights of more bits take, fewer channels do not.
        size = min(0.15 * max(middle(weights, self.bits.ends), 4.0) / 4, 0.5)
        if not self.prunes:
            return f"bytes={size:.4g}"
        return "macs=0.5" if weights == (OFF_BITS,) else f"bytes={size:.4g},macs=0.5"

    def training_defaults(self) -> dict[str, float]:
        """Returns those of the quantizer, whose steps are the more delicate ones."""
        return self.bits.training_defaults()

    def own_options(self) -> dict[str, Any]:
        """Returns the options of all parts."""
        channels, weights = (kind(self.name, self.options) for kind in (ChannelSpec, SparseSpec))
        return {
            "quantizer": self.quantization,
            "pruning": channels.own_options() if self.prunes else None,
            "sparsification": weights.own_options() if self.sparsifies else None,
            "quantization": self.bits.own_options(),
        }

    def prepare(
        self, data: Images, model: nn.Module, *, task: Task | None = None, progress: bool = False
    ) -> Learner:
        """Prepares the learners of all parts as one."""
        from amc_compress.learners.joint.options import JointOptions
        from amc_compress.learners.joint.prepare import prepare_joint

        options = JointOptions(task=task or self.task(data.task), **self._keywords(data, progress))
        return prepare_joint(*self._positional(data, model), options=options)


class DeepSpec(JointSpec):
    """Deep Compression: sparse, then codebooks, trained after each step.

    It quantizes weights only, trains what they share, and its first and last layer are too small
    to pay for codebooks of 256 entries.
    """

    title = "Deep compression"
    reads = ()
    prunes = False
    sparsifies = True
    quantization = "codebook"
    in_steps = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """The learner itself."""
        return (self.name,)

    def defaults(self) -> dict[str, Any]:
        """Returns what its paper takes."""
        own = {"activation_bits": str(OFF_BITS), "first_last_bits": None}
        return super().defaults() | own | {"codebook_mode": "clusters"}

    def default_budget(self) -> str:
        """Returns a tenth of the bytes."""
        return "bytes=0.1"

    def check(self) -> None:
        """Checks that there is a training, of labels and answers alone."""
        super().check()
        if not self.options.epochs:
            raise ValueError(
                "Expected --epochs >= 1 with --learner deep, whose codebooks are made to be "
                "trained; --learner joint --density makes both at once."
            )
        if self.options.feature_matching:
            raise ValueError(
                "--feature-matching has no effect on --learner deep, whose two trainings learn "
                "answers only."
            )

    def _keywords(self, data: Images, progress: bool) -> dict[str, Any]:
        sparse = SparseSpec(self.name, self.options)
        schedule = sparse.schedule(self.options.retraining_epochs * len(data.train))
        told = super()._keywords(data, progress)
        return told | {"sparsification": sparse.own_options() | schedule}
