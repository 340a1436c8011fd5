"""The options of the network, its data and the machine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from amc_compress.config.option import option
from amc_compress.config.texts import network, numbers, place, words
from amc_env.validation.checks import MOST_THREADS

RUN = "Run"

_task = functools.partial(option, stage="task", panel="Network and data")
_train = functools.partial(option, stage="train", panel="Network and data")
_run = functools.partial(option, stage="task", panel=RUN)


@dataclass(frozen=True)
class TaskOptions:
    """What is compressed, on which data, with which part of the machine."""

    model: str = _task(
        None,
        "lenet, plain20, resnet20, resnet32, resnet56, mobilenet_v1, mobilenet_v2, "
        "mobilenet_v2_fast (stem of stride 2), vgg16_bn, densenet40, digitsnet; unet_small "
        "(masks), fcos_small (boxes); or your own: "
        "package.module:factory, torchvision.models:resnet18, timm:resnet18. The factory gets "
        "the number of classes, the channels and the size of the images if it takes them. Or a "
        "folder of transformers with config.json and safetensors, which brings its weights. Not "
        "given: digitsnet; for digit-scenes fcos_small or unet_small.",
        read=network,
        everyday=True,
    )
    model_args: tuple[str, ...] = _task(
        (),
        "Further keyword of the model's factory, e.g. width=0.5; may be repeated.",
        read=words,
        metavar="KEY=VALUE",
    )
    data: str = _task(
        "digits",
        "digits (embedded), digit-scenes (embedded: several digits with boxes and masks); a "
        "folder of parquet or Arrow files with the Hugging Face schema, of save_to_disk, of tar "
        "shards, or with a folder of images per class; a name on the Hugging Face hub (needs the "
        "hub extra); text, a file or a folder of .txt, .md, .rst or .py, which the tokenizer of "
        "--model reads; or your own: package.module:factory, which returns loaders (train, "
        "validation) or (train, validation, test). DATA:NAME takes one of several configurations. "
        "docs/data.md says more.",
        read=place,
        everyday=True,
    )
    task: str | None = _task(
        None,
        "What the network is for: classification, multilabel, regression, segmentation, "
        "detection, language-modelling, token-classification, or without labels, by the original "
        "network: embedding, token-distribution (of language models), agreement. It has the loss, "
        "the metric, and the score that is searched for. Your own: package.module:Class.",
        default_text="that of the data",
        everyday=True,
    )
    metric: str | None = _task(
        None,
        "What the score is made from instead: a metric that the task offers, or yours, "
        "package.module:name, a torchmetrics.Metric or a function of outputs and targets.",
    )
    lower_is_better: bool = _task(
        False, "Less of --metric is better; for functions that do not say so themselves."
    )
    loss: str | None = _task(
        None,
        "What is trained with instead: package.module:name, a function of outputs and targets.",
    )
    weights: str | None = _task(
        None,
        "Trained weights: safetensors, or anything saved by torch.save that holds the "
        "network's tensors: under keys, under prefixes, raw or averaged (FILE::KEY chooses). "
        "Without them the network is trained first.",
        read=place,
        kind=Path,
        everyday=True,
    )
    allow_pickle: bool = _task(False, "Let the weights file run code. Only for files you trust.")
    validation_size: int | None = _task(
        None,
        "Samples cut from the training data to validate on; a tenth of them (digits: a "
        "fifth) if not given.",
    )
    validation_split: str = _task(
        "random",
        "Which ones: random (equally from all classes) or tail (the last rows).",
        choices=("random", "tail"),
    )
    image_size: int | None = _task(
        None,
        "Side of the images, for those of several sizes: the shorter side is scaled to "
        "256/224 of it, the middle is evaluated, random parts of it are trained on.",
        least=1,
    )
    image_column: str | None = _task(None, "Column of the images; img or image if not given.")
    label_column: str | None = _task(
        None,
        "Column of the labels; label, labels or fine_label if not given. Strings are "
        "numbered in alphabetical order.",
    )
    mean: tuple[float, ...] | None = _task(
        None,
        "Normalisation of each channel, e.g. 0.485,0.456,0.406 (the default for colour).",
        read=numbers,
    )
    std: tuple[float, ...] | None = _task(None, "As --mean, e.g. 0.229,0.224,0.225.", read=numbers)
    batch_size: int | None = _task(
        None,
        "Samples per batch; 128 if not given, 16 for digit-scenes and text. Of data sets of yours "
        "the training batches have as many as leave 50 steps in an epoch, 8 to 128; loaders of "
        "yours keep their own.",
        least=1,
    )
    train_epochs: int = _train(
        None,
        "Epochs of the first training, without --weights; 30 if not given, 20 for digit-scenes, "
        "0 for a folder of transformers; with 0 the network is taken with the weights that its "
        "factory gave it.",
        least=0,
    )
    train_learning_rate: float = _train(
        None,
        "Its peak learning rate; 0.05 if not given, 0.1 for the masks of digit-scenes.",
        above=0,
    )

    seed: int = _run(
        0,
        "Random seed; the same seed gives the same plan on one machine.",
        least=0,
        everyday=True,
    )
    precision: str = _run(
        "auto",
        "auto (bf16 where the processor or GPU is fast at it), fp32, bf16, or fp16: trainings "
        "with scaled losses, all else in fp32. Test accuracies are always fp32, and so are "
        "searches with --max-drop unless bf16 is asked for.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    threads: int = _run(
        0,
        "Processor threads; 0 takes one for searching and for tiny images, else all. "
        "Where other work runs give 1: threads that wait for each other are many times slower.",
        least=0,
        most=MOST_THREADS,
    )
    device: str = _run("cpu", "cpu, cuda, cuda:1, ...")
