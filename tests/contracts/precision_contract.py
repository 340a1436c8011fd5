"""What every learner must keep in bfloat16: the same numbers twice, and those of float32."""

from __future__ import annotations

import pytest

N_PLANS = 50
ONE_POINT = 0.01


class PrecisionContract:
    """A part of :class:`contracts.learner_contract.LearnerContract`.

    The class that inherits builds learners with ``made`` and draws plans with ``random_plan``.
    """

    precision = "bf16"
    """What is compared with fp32."""

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
