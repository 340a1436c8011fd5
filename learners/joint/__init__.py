"""Several kinds of compression decided together."""

from amc_compress.learners.joint.deep import compress_deeply, deep_compression
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.learners.joint.prepare import joint_compression

__all__ = ["compress_deeply", "deep_compression", "JointCompression", "joint_compression"]
