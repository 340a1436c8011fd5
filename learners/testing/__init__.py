"""What a learner or a task of your own must keep, as test classes; needs pytest.

from amc_compress.learners.testing import LearnerContract

class TestMyLearner(LearnerContract):
def make(self, model, example, calibration, validation, **options):
return MyLearner(model, example, calibration, validation, **options)
"""

import pytest

pytest.register_assert_rewrite("amc_compress.learners.testing.contract")
pytest.register_assert_rewrite("amc_compress.learners.testing.task_contract")

from amc_compress.learners.testing.contract import LearnerContract  # noqa: E402
from amc_compress.learners.testing.task_contract import TaskContract  # noqa: E402

__all__ = ["LearnerContract", "TaskContract"]
