"""Presets: how much is spent on a run, where its own options do not say."""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: Mapping[str, Mapping[str, int]] = {
    "quick": {"evaluations": 30, "n_validation": 1000, "epochs": 3},
    "standard": {"evaluations": 100, "n_validation": 3000},
    "thorough": {"evaluations": 400, "n_validation": 10_000, "epochs": 100},
}
"""Name -> option -> what it is if not given; the standard epochs are those of the data."""


def presets_text() -> str:
    """Returns the presets with their numbers, for the help."""
    parts = [
        f"{name} ({p['evaluations']} evaluations, on at most {p['n_validation']:,} validation "
        f"images each, {p.get('epochs', 'the usual')} epochs of fine-tuning)"
        for name, p in PRESETS.items()
    ]
    return "; ".join(parts)


def standard_text(option: str) -> str:
    """Returns what an option is without a preset, for the help."""
    return f"{PRESETS['standard'][option]}; see --preset"
