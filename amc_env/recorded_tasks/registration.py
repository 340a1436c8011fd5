"""Ready-made tasks, registered with Gymnasium when the package is imported.

Entry points are strings: nothing of ``experiments`` is imported before a task is made. Keyword
arguments are plain JSON, so an ``EnvSpec`` round-trips through ``to_json``: a budget may be
``0.5`` (which means ``macs=0.5``), ``"macs=0.5,bytes=0.3"`` or ``{"macs": [0.45, 0.5]}``, and code
of the user (``model``, ``reward``, ``cost_models``) is named ``"package.module:name"``.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

_RECORDED = "amc_env.recorded_tasks.recorded:make_recorded"

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "amc/synthetic-v0": ("amc_env.recorded_tasks.synthetic:make_synthetic", {}),
    "amc/synthetic-bits-v0": ("amc_env.recorded_tasks.synthetic:make_synthetic_bits", {}),
    "amc/synthetic-joint-v0": ("amc_env.recorded_tasks.synthetic:make_synthetic_joint", {}),
    "amc/synthetic-density-v0": ("amc_env.recorded_tasks.synthetic:make_synthetic_density", {}),
    "amc/digits-channels-v0": ("amc_compress.tasks:make_digits_channels", {}),
    "amc/digits-bits-v0": ("amc_compress.tasks:make_digits_bits", {}),
    "amc/digits-density-v0": ("amc_compress.tasks:make_digits_density", {}),
    "amc/digits-joint-v0": ("amc_compress.tasks:make_digits_joint", {}),
    "amc/resnet20-channels-v0": ("amc_compress.tasks:make_resnet20_channels", {}),
    "amc/resnet20-bits-v0": ("amc_compress.tasks:make_resnet20_bits", {}),
    "amc/resnet20-density-v0": ("amc_compress.tasks:make_resnet20_density", {}),
    "amc/resnet20-joint-v0": ("amc_compress.tasks:make_resnet20_joint", {}),
    "amc/channels-v0": ("amc_compress.tasks:make_channels", {}),
    "amc/digits-channels-recorded-v0": (_RECORDED, {"task": "digits-channels"}),
    "amc/resnet20-channels-recorded-v0": (_RECORDED, {"task": "resnet20-channels"}),
    "amc/resnet20-channels-30-recorded-v0": (_RECORDED, {"task": "resnet20-channels-30"}),
    "amc/mobilenetv2-channels-recorded-v0": (_RECORDED, {"task": "mobilenetv2-channels"}),
    "amc/resnet20-bits-recorded-v0": (_RECORDED, {"task": "resnet20-bits"}),
    "amc/resnet20-joint-recorded-v0": (_RECORDED, {"task": "resnet20-joint"}),
}
"""Id -> entry point and default keyword arguments."""


def register_tasks() -> None:
    """Registers every task once; a second call changes nothing."""
    for name, (entry_point, kwargs) in TASKS.items():
        if name not in gym.registry:
            # No max_episode_steps: a time limit would truncate, and agents would bootstrap past
            # the end of an episode whose length is fixed anyway.
            gym.register(id=name, entry_point=entry_point, kwargs=kwargs)
