"""The configuration that a cut network of ``transformers`` carries with it."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import nn

from amc_compress.learners.export.pretrained.folder import kind_of, stock
from amc_compress.learners.export.pretrained.widths import made_shapes, numbered_anew, shapes_of
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tasks.inputs import Inputs, ask, to_inputs


def describe(network: nn.Module, example_input: Inputs) -> str:
    """Brings ``network.config`` up to date, where one configuration describes a cut network.

    Its parts keep the configuration of the original: their code reads there what a cut has to
    leave as it was, such as the number that scales an embedding.

    Args:
        network: Cut, of any library; in ``eval`` mode.
        example_input: What it is called with.

    Returns:
        Why ``network.config`` describes the original still, for the user; nothing if it is up to
        date, or there is none.
    """
    library = sys.modules.get("transformers")
    kind = None if library is None else kind_of(network, library)
    config: Any = getattr(network, "config", None)
    if kind is None or config is None or made_shapes(kind, config) == shapes_of(network):
        return ""
    if quantized_layers(network) or masked_layers(network):
        return "its class knows no layers like those that are quantized or masked"
    if any(old != new for old, new in numbered_anew(network.state_dict()).items()):
        return "layers are left out, whose places caches of keys and values keep"
    found = stock(network, example_input)
    if found is None:
        return "no configuration of its class has the widths of every layer"
    new = copy.copy(config)
    before, after = config.to_dict(), found.config.to_dict()
    for name in after.keys() & before.keys():
        if before[name] != after[name] and name not in ("architectures", "dtype"):
            setattr(new, name, after[name])
    inputs: Any = to_inputs(example_input)
    with torch.no_grad():
        answer = ask(network, inputs)
        vars(network)["config"] = new
        if difference(ask(network, inputs), answer) == 0:
            return ""
    vars(network)["config"] = config
    return "the network's own code computes with numbers of the original there"
