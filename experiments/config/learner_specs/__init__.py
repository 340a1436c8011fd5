"""The learners of a run by name; adding one takes a file in this folder, and a line here."""

from amc_compress.config.learner_specs.base import LearnerSpec
from amc_compress.config.learner_specs.bits import CodebookSpec, UniformSpec
from amc_compress.config.learner_specs.channels import (
    ChannelSpec,
    DiscriminationSpec,
    GroupLassoSpec,
    RemasteredSpec,
)
from amc_compress.config.learner_specs.joint import DeepSpec, JointSpec
from amc_compress.config.learner_specs.sparse import SparseSpec

LEARNERS: dict[str, type[LearnerSpec]] = {
    "channels": ChannelSpec,
    "group-lasso": GroupLassoSpec,
    "remastered": RemasteredSpec,
    "discrimination": DiscriminationSpec,
    "sparse": SparseSpec,
    "deep": DeepSpec,
    "uniform": UniformSpec,
    "codebook": CodebookSpec,
    "joint": JointSpec,
}
"""Name on the command line -> what a run has to know of the learner."""

__all__ = ["LEARNERS", "LearnerSpec"]
