"""Options of how data are read: texts to values, and one sentence for what is none."""

from __future__ import annotations

from typing import Any

import pytest

from amc_compress.config.option import ANY_TIME
from amc_compress.config.run_config import OPTIONS, RunConfig
from amc_compress.config.texts import size, snapshot_settings, snapshots


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [("500", 500, None), ("10m", None, 600.0), ("1h30m", None, 5400.0), ("none", None, None)],
)
def test_snapshots_are_steps_or_a_time(text: str, steps: int | None, seconds: float | None) -> None:
    assert snapshots("--snapshot-every", text) == text
    found: dict[str, Any] = snapshot_settings(text)
    assert found == {"snapshot_steps": steps, "snapshot_seconds": seconds}
    config = RunConfig(snapshot_every=text)
    assert config.spec.training_config().snapshot_steps == steps


@pytest.mark.parametrize("text", ["0", "-3", "soon", "", "1.5.2m"])
def test_snapshots_need_a_distance(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expected --snapshot-every as a time \(10m, 90s\)"):
        RunConfig(snapshot_every=text)


@pytest.mark.parametrize(
    ("text", "expected"), [("4GB", 4 * 10**9), ("1.5 MiB", 1_572_864), ("300kb", 300_000), ("7", 7)]
)
def test_sizes_have_units(text: str, expected: int) -> None:
    assert size("--memory", text) == expected
    assert RunConfig(memory=text).memory == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "a lot"}, r"Expected --memory as a size, e\.g\. 4GB or 512MB, got 'a lot'"),
        ({"memory": "0GB"}, "Expected --memory as a size"),
        ({"data_workers": -1}, "Expected --data-workers in"),
        ({"augment": ("blur",)}, "blur"),
        ({"augment": ("standard", "flip")}, "or crop and flip in its place, got standard,flip"),
        ({"augment": ("none", "mixup")}, "Expected --augment none alone"),
        ({"augment": ()}, "Expected --augment none alone, or others, got ''"),
    ],
)
def test_mistakes_are_named_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(**options)


@pytest.mark.parametrize("options", [{"augment": ("flip",)}, {"memory": "1GB"}])
def test_what_has_no_effect_on_a_factory_is_named(options: dict[str, Any]) -> None:
    config = RunConfig(data="mine:loaders", **options)
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"--{name} has no effect on --data mine:loaders"):
        config.validate()


def test_options_that_change_no_result_differ_in_no_stage() -> None:
    one = RunConfig(memory="1GB", data_workers=3, snapshot_every="5")
    stages = {option.stage for option in OPTIONS.values()} - {ANY_TIME}
    assert one.differences(RunConfig(), stages) == []
    assert RunConfig(augment=("flip",)).differences(RunConfig(), {"task"}) != []
