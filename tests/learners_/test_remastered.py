"""RemasteredPruning keeps the contract; its optimum against scikit-learn."""

from __future__ import annotations

from contracts.learner_contract import LearnerContract

from learners import RemasteredPruning


class TestRemasteredPruning(LearnerContract):
    def make(self, model, example, calibration, validation, **options):
        return RemasteredPruning(model, example, calibration, validation, **options)
