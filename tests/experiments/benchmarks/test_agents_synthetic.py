"""The table of agents on small problems: how means and spreads are written."""

from __future__ import annotations

from amc_compress.benchmarks.agents.agents_synthetic import Job, Run, print_table


def run(row: str, seed: int, reward: float) -> Run:
    job = Job(row, "random", (), "amc/synthetic-v0", (), 1, seed)
    return Run(job, uniform=0.5, rewards=(reward,), cpu_seconds=1.0)


def test_spreads_are_sample_deviations_and_one_run_has_none(capsys):
    runs = [run("two", 0, 0.6), run("two", 1, 0.8), run("one", 0, 1.0)]
    print_table(runs, [1])
    lines = capsys.readouterr().out.splitlines()
    # Scores 0.2 and 0.6: the deviation is 0.4 / sqrt(2).
    assert lines[2].startswith("| two | 0.40 ± 0.28 | 0.7000 ± 0.1414 |")
    assert lines[3].startswith("| one | 1.00 | 1.0000 |")
