"""Networks by name: ours from a table, a user's by ``package.module:factory``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from amc_compress.config.texts import is_pretrained
from amc_compress.learners.export.pretrained.loading import load
from amc_compress.models.arguments import call_factory
from amc_compress.models.densenet import densenet40
from amc_compress.models.digitsnet import digitsnet
from amc_compress.models.lenet import lenet
from amc_compress.models.mobilenet import mobilenet_v1, mobilenet_v2, mobilenet_v2_fast
from amc_compress.models.resnet import plain20, resnet20, resnet32, resnet56
from amc_compress.models.scenes import fcos_small, unet_small
from amc_compress.models.vgg import vgg16_bn
from amc_env.errors import InputDataError
from amc_env.validation.checks import unknown
from amc_env.validation.references import resolve
from amc_env.validation.sentences import some

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
        unet_small,
        fcos_small,
    )
}
"""Name -> factory; every factory takes ``n_classes`` and ``in_channels``."""


def make_model(
    name: str,
    *,
    n_classes: int = 10,
    in_channels: int = 3,
    image_size: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network, untrained.

    Args:
        name: A key of ``MODELS``, or ``package.module:factory`` for a function (or class) of the
            user's own or of a library (``torchvision.models:resnet18``, ``timm:resnet18``); the
            current directory is searched too. It is given the keywords below under the names that
            it knows, see ``amc_compress.models.arguments``. Or a folder of ``transformers``,
            which brings its weights.
        n_classes: Number of outputs.
        in_channels: Channels of the images.
        image_size: Height (= width) of the images, for networks whose linear layers need it.
        arguments: Further keywords of the factory; they go before those above.

    Raises:
        InputDataError: The name is unknown, or the factory cannot be imported or called.
    """
    if is_pretrained(name):
        if arguments:
            raise InputDataError(
                f"Expected no --model-args with the folder {name}, whose config.json says how its "
                f"network is made, got {some(map(repr, arguments), 3)}; leave them out."
            )
        return load(name)
    factory = _import_factory(name) if ":" in name else _known_factory(name)
    sizes = {"n_classes": n_classes, "in_channels": in_channels, "image_size": image_size}
    model = call_factory(factory, name, sizes, arguments or {})
    if not isinstance(model, nn.Module):
        raise InputDataError(
            f"The model factory {name!r} must return a torch.nn.Module, got "
            f"{type(model).__name__}: return the network itself."
        )
    return model


def _known_factory(name: str) -> ModelFactory:
    if name in MODELS:
        return MODELS[name]
    own = ", or 'package.module:factory' for your own"
    raise InputDataError(unknown("model", name, sorted(MODELS), own))


def _import_factory(name: str) -> ModelFactory:
    factory = _listed(name) or resolve(name, "model")
    if not callable(factory):
        raise InputDataError(
            f"Expected the model {name!r} to be a function or a class that makes a network, got "
            f"{type(factory).__name__}."
        )
    result: ModelFactory = factory
    return result


def _listed(name: str) -> ModelFactory | None:
    """Returns the factory of a library that makes its networks by name, as ``timm`` does."""
    library, _, entry = name.partition(":")
    if library != "timm" or entry == "create_model":
        return None
    timm = resolve("timm:create_model", "model"), resolve("timm:is_model", "model")
    return functools.partial(timm[0], entry) if timm[1](entry) else None
