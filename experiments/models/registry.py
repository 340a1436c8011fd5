"""Networks by name: ours from a table, a user's by ``package.module:factory``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from amc_env.errors import InputDataError
from amc_env.references import resolve
from experiments.models.densenet import densenet40
from experiments.models.digitsnet import digitsnet
from experiments.models.lenet import lenet
from experiments.models.mobilenet import mobilenet_v1, mobilenet_v2, mobilenet_v2_fast
from experiments.models.resnet import plain20, resnet20, resnet32, resnet56
from experiments.models.vgg import vgg16_bn

ModelFactory = Callable[..., nn.Module]

MODELS: dict[str, ModelFactory] = {
    factory.__name__: factory
    for factory in (
        lenet,
        plain20,
        resnet20,
        resnet32,
        resnet56,
        mobilenet_v1,
        mobilenet_v2,
        mobilenet_v2_fast,
        vgg16_bn,
        densenet40,
        digitsnet,
    )
}
"""Name -> factory; every factory takes ``n_classes`` and ``in_channels``."""


def make_model(
    name: str, *, n_classes: int = 10, in_channels: int = 3, image_size: int | None = None
) -> nn.Module:
    """Build a network, untrained.

    Args:
        name: A key of ``MODELS``, or ``package.module:factory`` for a function (or class) of the
            user's own; the current directory is searched too. Of the keywords below it is
            given those that its signature names (``num_classes`` is understood as well).
        n_classes: Number of outputs.
        in_channels: Channels of the images.
        image_size: Height (= width) of the images, for networks whose linear layers need it.

    Raises:
        InputDataError: The name is unknown, or the factory cannot be imported or called.
    """
    factory = _import_factory(name) if ":" in name else _known_factory(name)
    wanted: dict[str, Any] = {
        "n_classes": n_classes,
        "num_classes": n_classes,
        "in_channels": in_channels,
    }
    if image_size is not None:
        wanted["image_size"] = image_size
    accepted = _keywords(factory)
    keywords = {key: value for key, value in wanted.items() if key in accepted}
    _check_call(factory, name, keywords)
    model = factory(**keywords)  # what it raises is the user's to see
    if not isinstance(model, nn.Module):
        raise InputDataError(
            f"The model factory {name!r} must return a torch.nn.Module, got "
            f"{type(model).__name__}: return the network itself."
        )
    return model


def _keywords(factory: ModelFactory) -> set[str]:
    try:
        return set(inspect.signature(factory).parameters)
    except ValueError:  # some builtins have no signature
        return set()


def _check_call(factory: ModelFactory, name: str, keywords: dict[str, Any]) -> None:
    """Checks that a factory can be called so, before its own code is run."""
    try:
        inspect.signature(factory).bind(**keywords)
    except TypeError as error:
        raise InputDataError(
            f"The model factory {name!r} cannot be called with only n_classes and in_channels: "
            f"{error}; give its other parameters default values."
        ) from error
    except ValueError:  # some builtins have no signature
        return


def _known_factory(name: str) -> ModelFactory:
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputDataError(
        f"Unknown model {name!r}; expected one of {', '.join(sorted(MODELS))}, or "
        f"'package.module:factory' for your own.{hint}"
    )


def _import_factory(name: str) -> ModelFactory:
    factory = resolve(name, "model")
    if not callable(factory):
        raise InputDataError(
            f"Expected the model {name!r} to be a function or a class that makes a network, got "
            f"{type(factory).__name__}."
        )
    result: ModelFactory = factory
    return result
