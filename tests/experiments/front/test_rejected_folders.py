"""Folders of ``transformers`` that cannot be worked with get one sentence, on the command line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.libraries import installed

from amc_compress.cli import run

WORDS = ["<unk>", *(f"w{number}" for number in range(40))]
TEXT = " ".join(f"w{number % 40}" for number in range(900))


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """A decoder of 41 words and 32 positions, with its tokenizer."""
    transformers, tokenizers = installed("transformers"), installed("tokenizers")
    folder: Path = tmp_path_factory.mktemp("decoder")
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>")
    reader = tokenizers.Tokenizer(words)
    reader.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=reader).save_pretrained(folder)
    return folder


def adapters(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def adapters_alone(folder: Path) -> None:
    adapters(folder)
    (folder / "config.json").unlink()


def quantized(folder: Path) -> None:
    configured(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


def unnamed(folder: Path) -> None:
    configured(folder, quantization_config={"bits": 4})


def other_format(folder: Path) -> None:
    method = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    configured(folder, quantization_config={**method, "config_groups": {}})


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def own_class(folder: Path) -> None:
    configured(folder, auto_map={"AutoModel": "other.Other"}, architectures=["Other"])


def own_code(folder: Path) -> None:
    configured(folder, auto_map={"AutoModelForCausalLM": "other.Other"}, model_type="other")


def few_words(folder: Path) -> None:
    configured(folder, vocab_size=20)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def configured(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def as_it_is(folder: Path) -> None:
    """Leaves the folder whole."""


DEPTH = ["--depth", "--min-ratio", "1"]
BAD: dict[str, tuple[Any, list[str], str]] = {
    "adapters": (adapters, [], "got adapters (adapter_config.json); merge them first"),
    "adapters alone": (adapters_alone, [], "merge them first"),
    "quantized": (quantized, [], "got weights quantized by gptq; give the float network"),
    "unnamed": (unnamed, [], "got weights quantized by an unnamed method"),
    "other format": (other_format, [], "got weights quantized by compressed-tensors"),
    "cut short": (cut_short, [], "to hold model.packed or model.safetensors"),
    "own class": (own_class, [], "whose code is not run; pass what builds the network"),
    "own code": (own_code, [], "whose code is not run; pass what builds the network"),
    "few words": (few_words, [], "Expected token ids below 20, as many as the network has embed"),
    "pickled": (pickled, [], "got pytorch_model.bin, which may run code"),
    "no tokenizer": (no_tokenizer, [], "Expected the files of a tokenizer"),
    "long samples": (as_it_is, ["--tokens", "64"], "Expected at most 32 tokens"),
    "short text": (as_it_is, ["--tokens", "32", "--data", "short.txt"], "at least three blocks"),
    "no head": (as_it_is, ["--budget", "macs=0.001"], "at least one head has to stay: model.layer"),
    "no branch": (as_it_is, [*DEPTH, "--budget", "macs=0.01"], "One of the branches has to stay"),
    "no block": (as_it_is, [*DEPTH, "--budget", "depth=0.01"], "No plan meets depth=0.01"),
    "few bits": (as_it_is, ["--learner", "uniform", "--budget", "bytes=0.01"], "No plan meets"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_worked_with_gets_one_sentence(network, name, tmp_path, monkeypatch, capsys):
    spoil, options, sentence = BAD[name]
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("short.txt").write_text("w1 w2")
    folder = tmp_path / "network"
    folder.mkdir()
    for file in network.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    spoil(folder)
    given = {"--data": "text.txt", "--tokens": "16", "--budget": "macs=0.5"}
    given |= {k: v for k, v in itertools.pairwise(options) if k in given}
    flags = [o for o in options if o not in given and o not in given.values()]
    line = ["--model", str(folder), *(x for pair in given.items() for x in pair), *flags]
    assert run(["compress", *line, "--evaluations", "1", "--out", "run", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert sentence in " ".join(error.split())
    assert len(error.strip().splitlines()) == 1
    assert "head has to stay" not in error or name == "no head"
