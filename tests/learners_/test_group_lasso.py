"""GroupLassoPruning keeps the contract; its iteration against one on explicit inputs."""

from __future__ import annotations

from contracts.learner_contract import LearnerContract

from learners import GroupLassoPruning


class TestGroupLassoPruning(LearnerContract):
    def make(self, model, example, calibration, validation, **options):
        return GroupLassoPruning(model, example, calibration, validation, **options)
