"""The learner's own estimates of single choices, kept for a run that is resumed.

An agent that begins with a prior reads them before its second evaluation; on a large network they
take longer than that evaluation. The file is an aid: what is missing, damaged or of another network
or other options is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from amc_compress.config.run_config import OPTIONS, RunConfig, package_versions
from amc_compress.learners.candidates.kept_curves import Curves
from amc_compress.learners.training.identity import digest_of, fingerprint
from amc_compress.runs.data_facts import DataFacts
from amc_env import RunFolderError
from amc_env.files import read_document, write_json
from amc_env.plan import Decision

CURVES = "curves.json"
_SHAPE = {"key": str, "curves": dict[str, dict[str, list[float]]]}


def key_of(config: RunConfig, facts: DataFacts, network: nn.Module, free: Sequence[str]) -> str:
    """Returns a digest of all that curves depend on.

    Args:
        config: The options of the run.
        facts: About its data.
        network: The original.
        free: Options on which no estimate depends.
    """
    options = {
        name: value
        for name, value in config.to_dict().items()
        if OPTIONS[name].stage in ("task", "train", "search") and name not in free
    }
    parts = [options, asdict(facts), fingerprint(network), digest_of(network), package_versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class StoredCurves(MutableMapping[str, Curves]):
    """Curves in a file: name of the method -> decision key -> a number for every choice.

    Args:
        path: The file.
        key: See :func:`key_of`.
        decisions: What the curves are about.
    """

    def __init__(self, path: Path, key: str, decisions: Sequence[Decision]) -> None:
        self._path = path
        self._key = key
        self._known = _read(path, key, {d.key: len(d.choices) for d in decisions})

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process they are no file."""
        return dict, (dict(self._known),)

    def __getitem__(self, name: str) -> Curves:
        return self._known[name]

    def __setitem__(self, name: str, curves: Curves) -> None:
        self._known[name] = curves
        written = {
            method: {key: curve.tolist() for key, curve in found.items()}
            for method, found in self._known.items()
        }
        if all(np.isfinite(x).all() for found in self._known.values() for x in found.values()):
            write_json(self._path, {"key": self._key, "curves": written})

    def __delitem__(self, name: str) -> None:
        del self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _read(path: Path, key: str, lengths: dict[str, int]) -> dict[str, Curves]:
    try:
        document = read_document(path, shape=_SHAPE)
    except RunFolderError:
        return {}
    if document["key"] != key:
        return {}
    return {
        name: {decision: np.array(curve) for decision, curve in curves.items()}
        for name, curves in document["curves"].items()
        if {decision: len(curve) for decision, curve in curves.items()} == lengths
    }
