"""A small language model of Python source, trained from nothing on what every Python carries.

A decoder of 9.8 million parameters in the shape of Llama (Touvron et al. 2023): 8 layers, 10 query
and 5 key/value heads of 32, width 320, gated hidden layers of 864. Its tokens are byte pairs
(Sennrich et al. 2016). It is trained on the source of Python's standard library without the tests;
one file in twenty is held out to validate, another to test. What is held out depends on the version
of Python alone; the text to train on has two files more that building Python wrote
(``_sysconfigdata*.py``, ``config-*/python-config.py``: 0.4%). ::

    pip install "amc-compress[transformers]"
    python -m amc_compress.recipes.trained.gpt gpt-folder

It takes three quarters of an hour on one core; an interrupted training resumes. In Python::

    from amc_compress import compress
    from amc_compress.recipes.trained import gpt

    train, validation, test = gpt.blocks("gpt-folder")
    result = compress(
        gpt.network("gpt-folder"),
        train,
        validation,
        test=test,
        task="language-modelling",
        budget="macs=0.5",
    )
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.export.pretrained.loading import without_bars
from amc_env.errors import InputDataError
from amc_env.support.optional import needed

_WORDS, _BLOCK, _BATCH = 2048, 256, 16
_STEPS, _WARM, _RATE, _DECAY = 1100, 100, 2e-3, 0.1
_KEPT_EVERY = 50
_CALIBRATION = 4  # batches of 4,096 tokens: five times as many as the widest layer has inputs
_END, _STATE = "<end>", "training.pt"
_SHARES = {"validation": 0, "test": 1}  # remainders by 20 of a file's hash
_SHAPE: dict[str, Any] = {
    "vocab_size": _WORDS,
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_hidden_layers": 8,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "max_position_embeddings": _BLOCK,
    "tie_word_embeddings": True,
}

Batches = list[dict[str, Tensor]]


def network(folder: str | Path) -> nn.Module:
    """Returns the trained network of a folder, for evaluation."""
    kind = _library("transformers").LlamaForCausalLM
    with without_bars():
        model: nn.Module = kind.from_pretrained(str(folder))
    return model.eval()


def blocks(
    folder: str | Path, counts: tuple[int, int, int] = (512, 32, 128), batch_size: int = 16
) -> tuple[Batches, Batches, Batches]:
    """Returns blocks of 256 tokens: to train on, to validate and to test.

    Args:
        folder: Of the trained network; its tokenizer is used.
        counts: Blocks of each, drawn by a fixed seed.
        batch_size: Blocks of a batch.
    """
    found: list[Batches] = []
    for part, count in zip(("train", "validation", "test"), counts, strict=True):
        all_blocks = _blocks(Path(folder), part)
        order = torch.randperm(len(all_blocks), generator=torch.Generator().manual_seed(0))
        chosen = all_blocks[order[:count]]
        found.append([{"input_ids": ids, "labels": ids} for ids in torch.split(chosen, batch_size)])
    train, validation, test = found
    return train, validation, test


def splits(folder: str | Path) -> dict[str, Batches]:
    """Returns the blocks with a few to calibrate on, as ``--data`` takes them."""
    train, validation, test = blocks(folder)
    return {
        "train": train,
        "calibration": train[:_CALIBRATION],
        "validation": validation,
        "test": test,
    }


def train(folder: str | Path, steps: int = _STEPS) -> str:
    """Trains the network, or goes on where an interrupted training ended.

    Args:
        folder: For the weights, the configuration and the tokenizer.
        steps: Of 16 blocks of 256 tokens each.

    Returns:
        The SHA-256 of the file of weights.

    Raises:
        InputDataError: If the folder holds a training of another number of steps.
    """
    library = _library("transformers")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _make_tokenizer(folder)
    data = _blocks(folder, "train")
    torch.manual_seed(0)
    model = library.LlamaForCausalLM(library.LlamaConfig(**_SHAPE))
    optimizer = torch.optim.AdamW(_groups(model), lr=_RATE, betas=(0.9, 0.95), fused=True)
    start = _resume(folder, steps, model, optimizer)
    for step in range(start, steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * _factor(step, steps)
        ids = data[_batch(step, len(data))]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % _KEPT_EVERY == 0:
            print(f"step {step + 1} of {steps}, loss {float(loss.detach()):.3f}", flush=True)
            state = {"step": step + 1, "steps": steps, "model": model.state_dict()}
            _keep(folder, {**state, "optimizer": optimizer.state_dict()})
    model.save_pretrained(str(folder))
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def text_hash(part: str) -> str:
    """Returns the SHA-256 of the text of ``train``, ``validation`` or ``test``."""
    found = hashlib.sha256()
    for text in _texts(part):
        found.update(text.encode() + b"\0")
    return found.hexdigest()


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Returns the parameters with weight decay, and the norms without."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [
        {"params": matrices, "weight_decay": _DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _factor(step: int, steps: int) -> float:
    """Returns the share of the learning rate: linear warm-up, then half a cosine to a tenth."""
    if step < _WARM:
        return (step + 1) / _WARM
    done = (step - _WARM) / max(1, steps - _WARM)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _batch(step: int, count: int) -> Tensor:
    """Returns the numbers of a step's blocks: a new order in every epoch."""
    epoch, place = divmod(step, count // _BATCH)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch))
    return order[place * _BATCH : (place + 1) * _BATCH]


def _keep(folder: Path, state: dict[str, Any]) -> None:
    torch.save(state, folder / "training.part")
    (folder / "training.part").replace(folder / _STATE)


def _resume(folder: Path, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restores what an interrupted training kept, and returns how many steps it had made."""
    path = folder / _STATE
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if (kept := state.get("steps", steps)) != steps:
        raise InputDataError(
            f"Expected --steps {kept}, with which the training in {folder} began, got {steps}: "
            f"give that number, or another folder."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _texts(part: str) -> list[str]:
    """Returns the files of a part, in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if {"site-packages", "test", "tests", "idle_test"} & set(name.split("/")):
            continue
        remainder = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20
        if _SHARES.get(part, remainder) == remainder and (
            part != "train" or remainder not in _SHARES.values()
        ):
            found.append(path.read_text(encoding="utf-8", errors="replace"))
    return found


def _make_tokenizer(folder: Path) -> None:
    """Learns byte pairs from the text to train on, if the folder has none."""
    if (folder / "tokenizer.json").exists():
        return
    library = _library("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=_WORDS,
        special_tokens=[_END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_texts("train"), trainer)
    fast = _library("transformers").PreTrainedTokenizerFast
    fast(tokenizer_object=made, eos_token=_END).save_pretrained(str(folder))


def _blocks(folder: Path, part: str) -> Tensor:
    """Returns the token ids (blocks, 256) of a part; files are joined by an end token."""
    tokenizer = _library("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(_END)
    ids: list[int] = []
    for encoded in tokenizer.encode_batch(_texts(part)):
        ids += [*encoded.ids, end]
    whole = len(ids) // _BLOCK * _BLOCK
    return torch.tensor(ids[:whole]).view(-1, _BLOCK)


def _library(name: str) -> Any:
    return needed(
        name,
        f"Expected {name} for the small language model, found none; `pip install transformers`.",
    )


def main() -> None:
    """Trains from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="for the weights and the tokenizer")
    parser.add_argument("--steps", type=int, default=_STEPS, help="default: %(default)s")
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}")
    for part in ("train", *_SHARES):
        print(f"{part}: {text_hash(part)}")
    print(f"weights: {train(arguments.folder, arguments.steps)}")


if __name__ == "__main__":
    main()
