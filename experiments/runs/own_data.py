"""Data of a user's own, as a run uses them: ``--data package.module:factory``, or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from amc_compress.config.run_config import RunConfig
from amc_compress.config.texts import is_pretrained, is_text
from amc_compress.data.factories import OwnLoaders, own_loaders
from amc_compress.data.given import GivenData, first_batch, given_data
from amc_compress.data.sources.texts import text_loaders
from amc_compress.learners.export.pretrained.loading import class_of, tokenizer_of
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.guess import guess_task
from amc_compress.learners.tasks.ready.embedding import Embedding
from amc_compress.learners.tasks.ready.language_modelling import LanguageModelling
from amc_compress.learners.tasks.registry import make_task
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.networks import build_original
from amc_env.errors import InputDataError

_IMAGE_DIMENSIONS = 4

# Their tables of positions begin with rows that no token has.
_POSITIONS_AFTER_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def own_data(
    config: RunConfig,
    talk: Callable[[str], None] | None = None,
    named: Mapping[str, Any] | None = None,
) -> GivenData:
    """Calls the factory that the options name, or reads their text, and looks at the loaders.

    Args:
        config: The options; where they name no task, the network and a batch tell it.
        talk: Is told which task, and what was left out.
        named: What else the factory is given, where it names such a parameter.

    Raises:
        InputDataError: If it makes no loaders, or no task fits.
    """
    if is_text(config.data):
        own, usual = _text(config)
        task = config.task or usual
        if talk is not None and config.task is None:
            talk(f"Taking --task {usual}, by the class of the network in {config.model}.")
    else:
        own = own_loaders(
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            workers=config.data_workers,
            named=named,
        )
        task = config.task or _guessed(config, own, talk)
    data = given_data(
        own.train,
        own.validation,
        config.spec.task(task),
        test=own.test,
        calibration=own.calibration,
        notes=own.notes,
    )
    content = {f"{name} data": text for name, text in data.content.items()}
    return replace(data, name=config.data, task=task, content=content)


def _text(config: RunConfig) -> tuple[OwnLoaders, str]:
    """Returns text as the network of a folder takes it, and the name of its usual task.

    Blocks where it says which token comes next, else lines, of which it makes embeddings.
    """
    if not is_pretrained(config.model):
        raise InputDataError(
            f"Expected --model as a folder of transformers, whose tokenizer reads the text of "
            f"--data, got {config.model!r}; name such a folder, or pass batches: --data "
            f"package.module:factory."
        )
    kind, shape = class_of(Path(config.model))
    _check_length(config, shape)
    generates = bool(kind.can_generate())
    found = text_loaders(
        config.data,
        tokenizer_of(Path(config.model)),
        length=config.tokens,
        lines=not generates,
        validation_size=config.validation_size,
        batch_size=config.batch_size,
        seed=config.seed,
        vocabulary_size=_fact(shape, "vocab_size"),
    )
    return found, LanguageModelling.name if generates else Embedding.name


def _check_length(config: RunConfig, shape: Any) -> None:
    """Checks that the network has a place for every token of a sample."""
    places = _fact(shape, "max_position_embeddings")
    if places is not None and shape.model_type in _POSITIONS_AFTER_PADDING:
        places -= (_fact(shape, "pad_token_id") or 0) + 1
    if places is not None and 0 < places < config.tokens:
        raise InputDataError(
            f"Expected at most {places} tokens, as many as {config.model} was made for, got "
            f"--tokens {config.tokens}; give fewer."
        )


def _fact(shape: Any, name: str) -> int | None:
    """Returns a number of a configuration, of its text part where it has several."""
    try:
        found = getattr(shape.get_text_config(), name, None)
    except ValueError:  # several parts read text
        return None
    return found if isinstance(found, int) else None


def _guessed(config: RunConfig, own: OwnLoaders, talk: Callable[[str], None] | None) -> str:
    """The name of the task that the network and the first training batch look like."""
    batch = first_batch(own.train, "train")
    example, _ = CLASSIFICATION.split(batch)
    facts = DataFacts(config.data, None, _image_shape(example))
    network = build_original(config.model, facts, config.model_args)
    task, reason = guess_task(network, batch)
    if task.identity() != make_task(task.name).identity():
        raise InputDataError(
            f"Expected batches of {config.data} that tell the task without a doubt: give --task."
        )
    if talk is not None:
        talk(reason.replace("task=.", "--task."))
    return task.name


def _image_shape(example: Any) -> tuple[int, int, int] | None:
    if not isinstance(example, Tensor) or example.ndim != _IMAGE_DIMENSIONS:
        return None
    _, channels, height, width = example.shape
    return channels, height, width
