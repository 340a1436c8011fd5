"""What a learner of your own must keep, as a test class; needs pytest.

from amc_compress.learners.testing import LearnerContract

class TestMyLearner(LearnerContract):
def make(self, model, example, calibration, validation, **options):
return MyLearner(model, example, calibration, validation, **options)
"""

import pytest

pytest.register_assert_rewrite("amc_compress.learners.testing.contract")

from amc_compress.learners.testing.contract import LearnerContract  # noqa: E402

__all__ = ["LearnerContract"]
