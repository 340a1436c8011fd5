# The public names, one a line: read by type checkers, and when a name is first used.
from .base import Learner as Learner
from .channel_pruning import ChannelPruning as ChannelPruning
from .channel_pruning import GroupLassoPruning as GroupLassoPruning
from .channel_pruning import RemasteredPruning as RemasteredPruning
from .channel_pruning.discrimination.learner import (
    DiscriminationAwarePruning as DiscriminationAwarePruning,
)
from .channel_pruning.gradual.group_finetuning import GroupFinetuned as GroupFinetuned
from .channel_pruning.gradual.group_finetuning import group_finetune as group_finetune
from .channel_pruning.gradual.regularisers import GroupLassoPenalty as GroupLassoPenalty
from .channel_pruning.gradual.regularisers import GrowingRegularisation as GrowingRegularisation
from .channel_pruning.gradual.sparse_training import cut_after as cut_after
from .channel_pruning.gradual.sparse_training import sparse_training as sparse_training
from .joint.deep import compress_deeply as compress_deeply
from .joint.deep import deep_compression as deep_compression
from .joint.learner import JointCompression as JointCompression
from .joint.prepare import joint_compression as joint_compression
from .packing.packed_file import load_packed as load_packed
from .packing.packed_file import save_packed as save_packed
from .quantization import UniformQuantization as UniformQuantization
from .quantization.codebook.learner import CodebookQuantization as CodebookQuantization
from .sparsification import WeightSparsification as WeightSparsification
from .tasks.guess import guess_task as guess_task
from .tasks.inputs import Call as Call
from .tasks.registry import make_task as make_task
from .tasks.task import Measure as Measure
from .tasks.task import Meter as Meter
from .tasks.task import Task as Task
from .tracing.traced_model import TracedModel as TracedModel
from .tracing.traced_model import trace as trace
from .training.config import TrainingConfig as TrainingConfig
from .training.feature_matching import FeatureMatching as FeatureMatching
from .training.loop import TrainingResult as TrainingResult
from .training.loop import evaluate as evaluate
from .training.loop import train as train
