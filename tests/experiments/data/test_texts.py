"""Text as data: blocks and lines of token ids, by the tokenizer of a folder of ``transformers``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.libraries import installed

import amc_compress
from amc_compress.cli import run
from amc_compress.config.texts import is_text
from amc_compress.data.sources.texts import text_loaders
from amc_compress.runs.networks import load_compressed
from amc_env import InputDataError

WORDS = [f"w{number}" for number in range(40)]


class Words:
    """A word a token: its number, behind 0 for padding and 1 for the end."""

    eos_token_id = 1
    pads = True

    def __call__(self, texts: list[str], *, verbose: bool, **options: Any) -> Any:
        rows = [[2 + int(word[1:]) for word in text.split()] for text in texts]
        if "max_length" not in options:
            return {"input_ids": rows}
        if not self.pads:
            raise ValueError("no padding token")
        length = options["max_length"]
        rows = [row[:length] for row in rows]
        return {
            "input_ids": [row + [0] * (length - len(row)) for row in rows],
            "attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in rows],
        }


def ids(loader: Any) -> torch.Tensor:
    return torch.cat([batch["input_ids"] for batch in loader])


def read(path: Any, **options: Any) -> Any:
    return text_loaders(path, Words(), **{"length": 4, "lines": False, **options})


def test_a_file_becomes_blocks_one_after_the_other(tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(WORDS) + "\n" + " ".join(WORDS))
    found = read(tmp_path / "text.txt")
    assert {k: len(ids(getattr(found, k))) for k in ("train", "validation", "test")} == {
        "train": 16, "validation": 2, "test": 2,
    }  # fmt: skip
    blocks = torch.cat([ids(found.calibration), ids(found.validation), ids(found.test)])
    expected = torch.arange(2, 42).repeat(2)  # 81 tokens with the end
    assert blocks.flatten().equal(expected)
    assert ids(found.train).sort(0).values.equal(ids(found.calibration).sort(0).values)
    assert len(ids(read(tmp_path / "text.txt", validation_size=5).validation)) == 5


def test_files_of_a_folder_are_split_by_their_names(tmp_path):
    (tmp_path / "train.txt").write_text(" ".join(WORDS[:20]))
    (tmp_path / "more.md").write_text(" ".join(WORDS[20:30]))
    (tmp_path / "val.txt").write_text(" ".join(WORDS[30:37]))
    (tmp_path / "notes.bin").write_bytes(b"\xff")
    found = read(tmp_path)
    assert ids(found.validation).tolist() == [[32, 33, 34, 35], [36, 37, 38, 1]]
    train = torch.cat([ids(found.calibration), ids(found.test)]).flatten().tolist()
    assert train.count(1) == 2
    assert {*range(2, 32)} - {*train} == set()


def test_lines_are_cut_off_and_filled_up(tmp_path):
    lines = [" ".join(WORDS[start : start + 2 + start % 4]) for start in range(30)]
    (tmp_path / "text.txt").write_text("\n\n".join([*lines, lines[0]]))
    found = read(tmp_path / "text.txt", lines=True, length=3)
    batches = [*found.calibration, *found.validation, *found.test]
    rows = torch.cat([batch["input_ids"] for batch in batches])
    masks = torch.cat([batch["attention_mask"] for batch in batches])
    assert rows.shape == (30, 3)
    assert (rows != 0).long().equal(masks)
    assert sorted(row[0].item() for row in rows) == [*range(2, 32)]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("w0 w1", {}, "at least three blocks of 4 tokens"),
        ("w0 w1", {"lines": True}, r"got 1 line and none for train; give more text"),
        ("", {"lines": True}, "got 0 lines"),
        (b"\xff\xfe\xff", {}, "text in UTF-8"),
    ],
)
def test_too_little_text_is_said(text, options, said, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputDataError, match=said):
        read(path, **options)


def test_a_tokenizer_that_cannot_pad_is_said(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(WORDS))
    monkeypatch.setattr(Words, "pads", False)
    with pytest.raises(InputDataError, match="a tokenizer that fills lines up"):
        read(tmp_path / "text.txt", lines=True)


def test_what_is_text(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one.py").write_text("")
    assert is_text(str(tmp_path))
    assert is_text(str(tmp_path / "a" / "b" / "one.py"))
    (tmp_path / "README.md").write_text("")
    (tmp_path / "a" / "train.parquet").write_bytes(b"")
    assert not is_text(str(tmp_path))
    assert not any(map(is_text, ("digits", "owner/name", str(tmp_path / "missing.txt"))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """A decoder with a tokenizer, as ``save_pretrained`` writes them, and text."""
    transformers, tokenizers = installed("transformers"), installed("tokenizers")
    path = tmp_path_factory.mktemp("decoder")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<end>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<end>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<end>", pad_token="<pad>"
    ).save_pretrained(path)
    config = transformers.LlamaConfig(
        vocab_size=42, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        intermediate_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = transformers.LlamaForCausalLM(config)
    network.generation_config.max_length = 77
    network.bfloat16().save_pretrained(path, max_shard_size="5KB")
    assert len([*path.glob("model-*.safetensors")]) > 1
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text(" ".join(WORDS * 20))
    return SimpleNamespace(path=path, text=text)


def test_two_paths_on_a_command_line_are_enough(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(folder.path), "--data", str(folder.text), "--tokens", "8"]
    options += ["--budget", "macs=0.8", "--agent", "uniform", "--evaluations", "1"]
    assert run(["compress", *options, "--epochs", "0", "--no-export", "--out", "run"]) == 0
    said = capsys.readouterr()
    assert "Taking --task language-modelling" in said.err
    assert run(["export", "run", "--format", "transformers", "--quiet"]) == 0  # no --trust
    small = amc_compress.load("run/transformers")
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small.generation_config.max_length == 77
    original = amc_compress.load(folder.path)
    assert sum(p.numel() for p in small.parameters()) < original.num_parameters()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copied = tmp_path / "run" / "transformers" / name
        assert copied.read_bytes() == (folder.path / name).read_bytes()


@pytest.mark.slow
def test_rounded_weights_go_to_stock_classes_by_command(folder, tmp_path, monkeypatch, capsys):
    transformers = installed("transformers")
    installed("compressed_tensors", "quantization")
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(folder.path), "--data", str(folder.text), "--tokens", "8"]
    options += ["--learner", "uniform", "--weight-bits", "4", "--activation-bits", "16"]
    options += ["--granularity", "group", "--group-size", "16", "--epochs", "0", "--no-export"]
    assert run(["compress", *options, "--out", "run", "--quiet"]) == 0
    capsys.readouterr()
    for _ in range(2):  # the second takes the place of the first
        assert run(["export", "run", "--format", "compressed-tensors", "--weights", "--quiet"]) == 0
    assert capsys.readouterr().out.split() == ["run/compressed-tensors"] * 2
    place = tmp_path / "run" / "compressed-tensors"
    stock = transformers.AutoModelForCausalLM.from_pretrained(place)
    ids = {"input_ids": torch.arange(2, 18).view(2, 8)}
    with torch.no_grad():
        expected = load_compressed("run")(**ids).logits
        assert stock(**ids).logits.equal(expected)
    assert (place / "tokenizer.json").read_bytes() == (folder.path / "tokenizer.json").read_bytes()


def test_what_a_folder_lacks_is_said(folder, tmp_path, fails):
    common = ["compress", "--data", str(folder.text), "--quiet", "--out", str(tmp_path / "run")]
    assert "a folder of transformers, whose tokenizer" in fails(*common, "--model", "lenet")
    args = ["--model", str(folder.path), "--model-args", "width=1"]
    assert "no --model-args with the folder" in fails(*common, *args)
    assert "--tokens has no effect" in fails(
        "compress", "--data", "digits", "--tokens", "8", "--out", str(tmp_path / "run")
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((folder.path / "config.json").read_bytes())
    assert "files of a tokenizer" in fails(*common, "--model", str(bare))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((folder.path / name).read_bytes())
    assert "model.safetensors" in fails(*common, "--model", str(bare))
