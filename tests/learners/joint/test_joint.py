"""JointCompression keeps the contract of learners."""

from __future__ import annotations

from contracts.precision_contract import PrecisionContract
from contracts.quantized import measured_costs

from amc_compress.learners.joint.prepare import joint_compression
from amc_env import Budget


class TestJointUniform(PrecisionContract):
    budget = Budget(macs=0.7, bytes=0.2)
    uncut_loss = 0.05

    def make(self, model, example, calibration, validation, **options):
        return joint_compression(model, example, calibration, validation, **options)

    def measured(self, learner, network, original):
        return measured_costs(network, original, learner.storage.fixed_bytes)
