"""Options that depend on the data and the model, where they are not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amc_compress.config.texts import is_factory, is_pretrained, is_text

LOADERS = "loaders"
"""The name of data that were given as objects."""

USUAL_MODEL = "digitsnet"

_USUAL: Mapping[str, Any] = {
    "model": USUAL_MODEL,
    "batch_size": 128,
    "train_epochs": 30,
    "train_learning_rate": 0.05,
    "epochs": 30,
}
# Of 2,400 scenes: as many steps as the networks need, in a few minutes on one core.
_SCENES: Mapping[str, Any] = {"batch_size": 16, "train_epochs": 20, "epochs": 10}
_OF_LABELS: Mapping[str, Mapping[str, Any]] = {
    "boxes": {"model": "fcos_small"},
    "masks": {"model": "unet_small", "train_learning_rate": 0.1},
}
_PARTS: Mapping[str, str] = {"fcos_small": "body"}
"""Model -> what of it is compressed; the rest is arithmetic around it."""


def data_defaults(data: str, task: str | None, model: str | None) -> dict[str, Any]:
    """Returns option -> value where it is not given.

    Args:
        data: The name of the data.
        task: What the network is for; None if that is not given either.
        model: The network; None if that is not given either.
    """
    found = dict(_USUAL)
    if is_factory(data) or data == LOADERS:
        found["batch_size"] = None  # loaders have their own, data sets one by their size
    if is_text(data):
        found["batch_size"] = 16  # logits are tokens times vocabulary
    if is_pretrained(model or ""):
        found["train_epochs"] = 0
    name, _, labels = data.partition(":")
    if name == "digit-scenes":
        labels = labels or ("masks" if task == "segmentation" else "boxes")
        found |= {**_SCENES, **_OF_LABELS.get(labels, {})}
    return {**found, "part": _PARTS.get(model or found["model"])}
