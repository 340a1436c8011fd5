"""The pictures of a plan name what the units of a group are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from amc_compress.report.plan_pictures import plan_pictures
from amc_env import CompressionPlan


def pictures(**results: Any) -> Any:
    plan = CompressionPlan({"layer.q:keep_ratio": 0.5, "head:keep_ratio": 0.25})
    folder = SimpleNamespace(
        results=lambda _: {"group_sizes": {"layer.q": 4, "head": 16}, **results},
        read_plan=lambda: plan,
        config=SimpleNamespace(first_last_bits=None),
    )
    return plan_pictures(folder)  # type: ignore[arg-type]


def test_heads_are_told_from_channels() -> None:
    [(picture, note)] = pictures(group_roles={"layer.q": "heads"})
    assert picture.rows == [("layer.q (heads)", 2, 4), ("head", 4, 16)]
    assert note.endswith("Rows of heads count heads.")


def test_runs_without_roles_are_shown_as_they_were() -> None:
    [(picture, note)] = pictures()
    assert [name for name, *_ in picture.rows] == ["layer.q", "head"]
    assert note.endswith("named after its first layer.")
