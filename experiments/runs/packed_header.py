"""Length of a packed file's header, computed without data or training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.config.learner_specs import LearnerSpec
from amc_compress.learners.joint.options import quantizer_named
from amc_compress.learners.joint.prepare import joint_compression
from amc_env.costs.storage import OFF_BITS

_IMAGES = 8
_CHEAP = {"activation_range": "minmax", "weight_range": "minmax", "init": "uniform"}


def header_bytes(spec: LearnerSpec, model: nn.Module, example: Tensor) -> float:
    """Returns the bytes of a packed file that are no tensor's, as the run's learner counts them.

    A header holds names, shapes and the plan, which do not depend on images or weights, so that
    the quantizer itself is asked, prepared in the cheapest way: for noise, and for no more than
    the most bits. What the images of a run change is whether the inputs of a layer are negative
    anywhere: a few bytes per layer.

    Args:
        spec: A learner that quantizes, with the options of the run.
        model: The network, trained or not; it is not changed.
        example: A batch as the network takes it; only its shape matters.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, *example.shape[1:], generator=generator)
    batches = [(images, torch.zeros(_IMAGES, dtype=torch.int64))]
    given = (_disturbed(model, generator), example.cpu(), batches, batches)
    own = spec.own_options()
    bits = dict(own.get("quantization", own))
    bits |= {name: value for name, value in _CHEAP.items() if name in bits}
    for name in ("weight_bits", "activation_bits"):
        bits[name] = _most(bits[name])
    shared: dict[str, Any] = {"proxy": "none", "precision": "fp32", "n_validation": _IMAGES}
    shared |= {"ignore": spec.options.ignore, "part": spec.options.part}
    with torch.random.fork_rng(devices=[]):
        if spec.prunes:
            learner: Any = joint_compression(
                *given,
                quantizer=spec.quantization,
                pruning=own["pruning"] | {"criterion": "l1"},
                quantization=bits,
                **shared,
            )
        else:
            quantizer: Any = quantizer_named(spec.quantization)
            learner = quantizer(*given, **shared, **bits)
    return float(learner.storage.fixed_bytes)


def _most(bits: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Returns the one choice of the network that headers are measured on; decided as before."""
    if isinstance(bits, int):
        return bits
    return (max((b for b in bits if b < OFF_BITS), default=bits[-1]),)


@torch.no_grad()
def _disturbed(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Returns a copy without zeros, which fresh networks are full of and files do not store."""
    copied = copy.deepcopy(model).cpu().eval()
    for tensor in copied.state_dict().values():
        if tensor.is_floating_point():
            # Never negative: some of it are variances.
            tensor += 0.01 * torch.rand(tensor.shape, generator=generator)
        elif tensor.dtype != torch.bool:
            tensor += 1
    return copied
