"""What learners of this project keep besides: in bfloat16 the numbers of float32, and twice."""

from __future__ import annotations

import pytest

from amc_compress.learners.testing import LearnerContract
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model

N_PLANS = 50
ONE_POINT = 0.01


class PrecisionContract(LearnerContract):
    """The contract of every learner, and that of learners with an option ``precision``."""

    precision = "bf16"
    """What is compared with fp32."""

    def with_much_data(self, name, precision):
        data = make_data(96, 2), make_data(2000, 3)  # more images: an accuracy has finer steps
        return self.make(make_model(name), EXAMPLE, *data, precision=precision)

    @pytest.mark.slow
    def test_bf16_is_within_a_point_of_float32_and_the_same_twice(self, name):
        exact = self.with_much_data(name, "fp32")
        rounded, again = (self.with_much_data(name, self.precision) for _ in range(2))
        plans = [self.random_plan(exact, seed) for seed in range(N_PLANS)]
        found = [rounded.evaluate(plan) for plan in plans]
        # Another learner, in another order.
        assert [again.evaluate(plan) for plan in plans[::-1]][::-1] == found
        expected = [exact.evaluate(plan) for plan in plans]
        assert found == pytest.approx(expected, abs=ONE_POINT)
