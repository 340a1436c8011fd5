"""Ready-made tasks, registered with Gymnasium when the package is imported.

Entry points are strings: nothing of ``amc_compress`` is imported before a task is made. Keyword
arguments are plain JSON, so an ``EnvSpec`` round-trips through ``to_json``: a budget may be
``0.5`` (which means ``macs=0.5``), ``"macs=0.5,bytes=0.3"`` or ``{"macs": [0.45, 0.5]}``, and code
of the user (``model``, ``reward``, ``cost_models``) is named ``"package.module:name"``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

_RECORDED = "amc_env.recorded_tasks.recorded:make_recorded"

_SYNTHETIC = "amc_env.recorded_tasks.synthetic:make_synthetic"
_CHANNELS, _BITS, _DENSITY, _JOINT = (
    f"amc_compress.tasks:make_{kind}" for kind in ("channels", "bits", "density", "joint")
)
# Single precision gives the same accuracies on every processor; the network is narrow.
_DIGITS = {"precision": "fp32"}
_NARROW = {**_DIGITS, "round_to": 2}
_RESNET20 = {
    "model": "resnet20",
    "data": "data/cifar10",
    "weights": "checkpoints/resnet20_cifar10.safetensors",
}

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "amc/synthetic-v0": (_SYNTHETIC, {}),
    "amc/synthetic-bits-v0": (_SYNTHETIC, {"kind": "bits"}),
    "amc/synthetic-joint-v0": (_SYNTHETIC, {"kind": "joint"}),
    "amc/synthetic-density-v0": (_SYNTHETIC, {"kind": "density"}),
    "amc/synthetic-depth-v0": (_SYNTHETIC, {"kind": "depth"}),
    "amc/digits-channels-v0": (_CHANNELS, {**_NARROW, "budget": "macs=0.3"}),
    "amc/digits-bits-v0": (_BITS, _DIGITS),
    "amc/digits-density-v0": (_DENSITY, _DIGITS),
    "amc/digits-joint-v0": (_JOINT, _NARROW),
    "amc/resnet20-channels-v0": (_CHANNELS, _RESNET20),
    "amc/resnet20-bits-v0": (_BITS, _RESNET20),
    "amc/resnet20-density-v0": (_DENSITY, _RESNET20),
    "amc/resnet20-joint-v0": (_JOINT, _RESNET20),
    "amc/channels-v0": (_CHANNELS, {}),
    "amc/digits-channels-recorded-v0": (_RECORDED, {"task": "digits-channels"}),
    "amc/resnet20-channels-recorded-v0": (_RECORDED, {"task": "resnet20-channels"}),
    "amc/resnet20-channels-30-recorded-v0": (_RECORDED, {"task": "resnet20-channels-30"}),
    "amc/mobilenetv2-channels-recorded-v0": (_RECORDED, {"task": "mobilenetv2-channels"}),
    "amc/resnet20-bits-recorded-v0": (_RECORDED, {"task": "resnet20-bits"}),
    "amc/resnet20-joint-recorded-v0": (_RECORDED, {"task": "resnet20-joint"}),
    "amc/gpt-depth-recorded-v0": (_RECORDED, {"task": "gpt-depth"}),
    "amc/minilm-bits-3-recorded-v0": (_RECORDED, {"task": "minilm-bits-3"}),
}
"""Id -> entry point and default keyword arguments."""


def register_tasks() -> None:
    """Registers every task once; a second call changes nothing."""
    for name, (entry_point, kwargs) in TASKS.items():
        if name not in gym.registry:
            # No max_episode_steps: a time limit would truncate, and agents would bootstrap past
            # the end of an episode whose length is fixed anyway.
            gym.register(id=name, entry_point=entry_point, kwargs=kwargs)
