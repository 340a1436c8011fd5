import json

import pytest

from amc_env import CompressionPlan, PlanMismatchError, keep_ratio_decision

A = keep_ratio_decision("a.conv", 20, round_to=8)
B = keep_ratio_decision("b", 4, round_to=8)


def test_channels_come_in_multiples_of_round_to_and_the_whole_is_always_legal():
    assert [A.units(c) for c in A.choices] == [8, 16, 20]


def test_round_to_is_capped_by_the_width_of_the_layer():
    assert B.choices == (1.0,)


def test_round_to_one_offers_every_channel_count():
    assert [d for d in keep_ratio_decision("a", 3, round_to=1).choices] == [1 / 3, 2 / 3, 1.0]


def test_min_ratio_removes_the_smallest_choices():
    decision = keep_ratio_decision("a", 10, round_to=1, min_ratio=0.35)
    assert decision.choices[0] == pytest.approx(0.4)


@pytest.mark.parametrize("bad", [dict(size=0), dict(size=4, round_to=0), dict(size=4, min_ratio=2)])
def test_bad_grids_are_rejected(bad):
    with pytest.raises(ValueError, match="Expected"):
        keep_ratio_decision("a", **bad)


def test_nearest_takes_the_larger_of_two_equally_near_choices():
    decision = keep_ratio_decision("a", 4, round_to=1)
    assert decision.nearest(0.375) == 0.5


def test_json_round_trip_keeps_every_value_and_the_order():
    plan = CompressionPlan.from_values((A, B), (0.8, 1.0))
    again = CompressionPlan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert list(again) == ["a.conv:keep_ratio", "b:keep_ratio"]


def test_full_plan_changes_nothing():
    assert dict(CompressionPlan.full((A, B))) == {"a.conv:keep_ratio": 1.0, "b:keep_ratio": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a.conv:keep_ratio": 0.4}, "lacks decisions"),
        ({"a.conv:keep_ratio": 0.4, "b:keep_ratio": 1.0, "c:keep_ratio": 1.0}, "not here"),
        ({"a.conv:keep_ratio": 0.41, "b:keep_ratio": 1.0}, "nearest legal value is 0.4"),
        ({"a.conv:keep_ratio": float("nan"), "b:keep_ratio": 1.0}, "not on the grid"),
    ],
)
def test_a_plan_that_does_not_fit_says_what_is_wrong(values, message):
    with pytest.raises(PlanMismatchError, match=message):
        CompressionPlan(values).values_for((A, B))


def test_truncated_and_foreign_files_are_rejected():
    text = CompressionPlan.full((A,)).to_json()
    for bad in (text[: len(text) // 2], "[]", '{"format": "other", "version": 1}', ""):
        with pytest.raises(PlanMismatchError, match="Expected a compression plan"):
            CompressionPlan.from_json(bad)


def test_another_version_is_rejected_by_number():
    document = json.loads(CompressionPlan.full((A,)).to_json()) | {"version": 99}
    with pytest.raises(PlanMismatchError, match="version 99"):
        CompressionPlan.from_json(json.dumps(document))


def test_a_damaged_row_is_rejected():
    document = json.loads(CompressionPlan.full((A,)).to_json())
    document["decisions"][0]["kind"] = "nonsense"
    with pytest.raises(PlanMismatchError, match="damaged"):
        CompressionPlan.from_json(json.dumps(document))
