"""Runs on folders of images: what was asked of the data is kept, and what was done is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.stored_images import (
    encode,
    pictures,
    table,
    write_classes,
    write_parquet,
    write_shards,
)

from amc_compress.cli import run
from amc_compress.commands.values import config_from


def test_a_run_on_class_folders_keeps_how_its_images_were_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", "")
    for split, n, shape in (("train", 12, (20, 30, 3)), ("val", 6, (40, 25, 3))):
        images = [encode(image, "JPEG") for image in pictures(n, n, shape)]
        write_classes(tmp_path / "set" / split, images, [i % 3 for i in range(n)], "abc", ".jpg")
    out = str(tmp_path / "run")
    given = ["--model", "lenet", "--data", str(tmp_path / "set"), "--image-size", "16"]
    options = ["train", *given, "--epochs", "1", "--out", out]
    assert run(options) == 0
    said = capsys.readouterr().err
    assert "data: labels are strings: 3 classes, 0 = 'a', 1 = 'b', 2 = 'c'" in said
    document = json.loads((tmp_path / "run/config.json").read_text())
    assert document["options"]["image_size"] == 16
    assert document["data"]["image_shape"] == [3, 16, 16]
    assert any("no test split" in note for note in document["data"]["notes"])
    accuracy = json.loads((tmp_path / "run/summary.json").read_text())["accuracy"]
    assert run([*options, "--resume"]) == 0
    capsys.readouterr()
    streamed = ["--memory", "1kB"]  # changes nothing but where the images are
    assert run(["evaluate", *given, *streamed, "--weights", f"{out}/model.safetensors"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy
    other = ["24" if word == "16" else word for word in options]
    assert run([*other, "--resume"]) == 2
    assert "--image-size is 16 there and 24 now" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_streamed_images_ends_as_one_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))
    for split, n in (("train", 90), ("test", 12)):
        images = [encode(image, "JPEG") for image in pictures(n, n, (24, 30, 3))]
        write_shards(tmp_path / "set", split, images, [i % 3 for i in range(n)], ".jpg")
    ends = []
    for name, more in (("held", []), ("streamed", ["--memory", "1kB", "--data-workers", "2"])):
        out = tmp_path / name
        options = ["--data", str(tmp_path / "set"), "--image-size", "16", "--model", "lenet"]
        few = ["--train-epochs", "2", "--epochs", "2", "--evaluations", "8", "--no-export"]
        few += ["--round-to", "1"]
        assert run(["compress", *options, *few, "--threads", "1", "--out", str(out), *more]) == 0
        assert (": streamed" in capsys.readouterr().err) is bool(more)
        trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
        told = [{k: v for k, v in trial.items() if "second" not in k} for trial in trials]
        ends.append(((out / "model.safetensors").read_bytes(), told))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "nan"], "Expected --mean as a number for each channel, at most 1"),
        (["--std", "0"], "Expected --std as a positive std for each channel"),
        (["--std", "58.395"], "pixels are divided by their largest value"),
        (["--image-size", "0"], "Expected --image-size >= 1, got 0."),
        (["--image-size", "32"], "has images of one size"),
    ],
)
def test_pixels_that_cannot_be_are_one_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(["train", *options, "--out", str(out), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_configuration_of_a_folder_does_not_depend_on_where_a_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "set/small-train.parquet", table([], []))
    monkeypatch.chdir(tmp_path)
    assert config_from({"data": "set:small"}).data == f"{tmp_path.resolve()}/set:small"
    assert config_from({"data": "owner/set:small"}).data == "owner/set:small"
