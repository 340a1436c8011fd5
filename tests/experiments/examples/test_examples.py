"""The examples run as they are and reach what they promise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from amc_compress.examples import own_network, own_policy


@pytest.mark.slow
def test_a_network_of_ones_own_is_compressed_and_stays_accurate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    own_network.main(episodes=12)
    printed = capsys.readouterr().out
    before, after = map(float, re.findall(r"0\.\d{4}", printed.splitlines()[-1]))
    assert before > 0.95
    assert after > 0.93
    assert (tmp_path / "small.onnx").exists()


def test_a_policy_of_ones_own_improves_on_its_first_batch(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reward, info = own_policy.search("amc_env:amc/synthetic-v0", 80)
    first = float(capsys.readouterr().out.split()[1])
    assert reward > first
    assert info["cost_ratio"]["macs"] <= 0.5


@pytest.mark.parametrize("module", [own_network, own_policy])
def test_examples_stay_short(module: object) -> None:
    assert len(Path(str(module.__file__)).read_text().splitlines()) < 60
