"""Files of networks with any inputs and outputs: names, free axes, comparison, 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.export.integers.onnx_quantized import post_training_int8
from amc_compress.learners.export.interface import Interface
from amc_compress.learners.export.onnx_file import ExportError, export_onnx
from amc_compress.learners.export.onnx_options import OnnxOptions
from amc_compress.learners.export.runtime import open_session, run_named, time_onnx
from amc_compress.learners.tasks.inputs import Call
from amc_env.errors import InputDataError

VOCABULARY, LONGEST, WIDTH = 50, 32, 16


@dataclass
class Answer:
    """What a network returns that names its outputs by attributes."""

    logits: Tensor
    states: tuple[Tensor, Tensor]
    loss: Tensor | None = None


class Words(nn.Module):
    """Token ids and a mask by keyword, and a number that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LONGEST, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, scale: float = 1.0
    ) -> Answer:
        length = torch.arange(input_ids.shape[1])
        first = self.embedding(input_ids) + self.places(length)
        second = torch.relu(self.layer(first))
        if attention_mask is not None:
            second = second * attention_mask.unsqueeze(-1)
        return Answer(scale * self.head(second.mean(1)), (first, second))


def sentences(count: int, length: int = 9) -> Call:
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(VOCABULARY, (count, length), generator=generator)
    mask = torch.rand(count, length, generator=generator) > 0.2
    return Call(kwargs={"input_ids": ids, "attention_mask": mask, "scale": 2.0})


@pytest.fixture(scope="module")
def words() -> nn.Module:
    torch.manual_seed(0)
    return Words().eval()


@pytest.fixture(scope="module")
def exported(words: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "words.onnx"
    result = export_onnx(words, sentences(2), path, images=sentences(70))
    assert result.max_difference < 1e-5
    assert result.agreement == 1.0
    assert result.n_images == 70
    return path


def test_names_and_axes_come_from_arguments_and_attributes(exported: Path) -> None:
    session = open_session(exported)
    inputs = {source.name: (source.type, source.shape) for source in session.get_inputs()}
    free = ["batch", "sequence"]
    assert inputs == {
        "input_ids": ("tensor(int64)", free),
        "attention_mask": ("tensor(bool)", free),
    }
    outputs = {source.name: source.shape for source in session.get_outputs()}
    assert outputs == {
        "logits": ["batch", 3],
        "states_0": [*free, WIDTH],
        "states_1": [*free, WIDTH],
    }


@pytest.mark.parametrize("length", [1, 4, LONGEST])
def test_any_number_and_length_of_sentences(words: nn.Module, exported: Path, length: int) -> None:
    inputs = sentences(5, length)
    tensors = {n: x for n, x in inputs.kwargs.items() if isinstance(x, Tensor)}
    with torch.no_grad():
        expected = words(**inputs.kwargs)
    got = run_named(open_session(exported), tensors)
    for right, here in zip((expected.logits, *expected.states), got, strict=True):
        np.testing.assert_allclose(here, right, atol=1e-5)


def test_fixed_batch_and_float16(words: nn.Module, tmp_path: Path) -> None:
    options = OnnxOptions(batch=4, half=True)
    export_onnx(words, sentences(2), tmp_path / "x.onnx", images=sentences(6), options=options)
    session = open_session(tmp_path / "x.onnx")
    assert {source.shape[0] for source in session.get_inputs()} == {4}
    assert {source.type for source in session.get_outputs()} == {"tensor(float)"}


def test_8_bits_take_their_ranges_from_dictionaries(words: nn.Module, tmp_path: Path) -> None:
    result = post_training_int8(
        words, sentences(2), tmp_path / "x.onnx", calibration=sentences(40), images=sentences(7)
    )
    assert result.n_int8_layers >= 1
    assert 0.0 < result.max_difference < 0.5
    assert result.agreement > 0.8
    other = Call(kwargs={"input_ids": sentences(40).kwargs["input_ids"]})
    with pytest.raises(InputDataError, match=r"\(N, 9\), \(N, 9\), got \(40, 9\)"):
        post_training_int8(words, sentences(2), tmp_path / "y.onnx", calibration=other)


def test_files_of_any_inputs_are_timed(words: nn.Module, exported: Path) -> None:
    interface = Interface(words, sentences(2))
    tensors = interface.named(sentences(3))
    times = time_onnx({"a": exported}, tensors, batch_sizes=(1, 8), seconds=0.01)
    assert times["a"].keys() == {"1", "8"}
    with pytest.raises(InputDataError, match="input_ids, attention_mask, got input_ids"):
        interface.named(Call(kwargs={"input_ids": tensors["input_ids"]}))


def test_the_task_says_how_alike_answers_are(words: nn.Module, tmp_path: Path) -> None:
    result = post_training_int8(
        words, sentences(2), tmp_path / "x.onnx", calibration=sentences(40), task="regression"
    )
    assert 0.9 < result.agreement < 1.0


class Nested(nn.Module):
    """Tensors in structures, two of them under one key; and the same tensor twice."""

    def forward(
        self, pair: tuple[Tensor, Tensor], extra: Mapping[str, Tensor], *rest: Tensor
    ) -> Any:
        total = pair[0] + pair[1] * extra["mask"] + rest[0]
        return {"a": {"x": total, "y": total * 2.0}, "b": [total.argmax(1), {"x": total}]}


def test_nested_inputs_and_outputs(tmp_path: Path) -> None:
    x = torch.randn(6, 3)
    inputs = Call(((x, 2.0 * x), {"mask": torch.ones(6, 3)}, 3.0 * x))
    export_onnx(Nested(), inputs, tmp_path / "x.onnx")
    session = open_session(tmp_path / "x.onnx")
    assert [s.name for s in session.get_inputs()] == ["pair_0", "pair_1", "mask", "rest_0"]
    assert [s.name for s in session.get_outputs()] == ["a_x", "y", "b_0", "b_1_x"]


class Detector(nn.Module):
    """A list of images in, a list of dictionaries out, one item per image; a body inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        maps = self.body(torch.stack(images))
        return [{"scores": found.amax((1, 2)).sort().values} for found in maps]


def test_lists_of_samples_have_a_sentence_and_two_ways_out(tmp_path: Path) -> None:
    images = Call(([torch.randn(3, 8, 8) for _ in range(3)],))
    with pytest.raises(ExportError, match=r"one item per sample.*--batch N.*part="):
        export_onnx(Detector(), images, tmp_path / "x.onnx")
    export_onnx(Detector(), images, tmp_path / "x.onnx", options=OnnxOptions(batch=2))
    session = open_session(tmp_path / "x.onnx")
    assert [s.name for s in session.get_inputs()] == ["images_0", "images_1"]
    assert [s.name for s in session.get_outputs()] == ["output_0_scores", "output_1_scores"]


def test_the_part_that_computes_with_tensors_is_exported(tmp_path: Path) -> None:
    images = Call(([torch.randn(3, 8, 8) for _ in range(5)],))
    for export in (export_onnx, partial(post_training_int8, calibration=images)):
        result = export(Detector().eval(), images, tmp_path / "x.onnx", part="body")
        assert result.n_images == 5
        session = open_session(tmp_path / "x.onnx")
        assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    with pytest.raises(InputDataError, match="part to export, got 'head'; there are body"):
        export_onnx(Detector(), images, tmp_path / "x.onnx", part="head")


class Waves(nn.Module):
    """Sound of any length that the user declares free."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, 4, 5, stride=2)

    def forward(self, wave: Tensor) -> Tensor:
        return torch.relu(self.layer(wave))


def test_further_axes_are_free_where_asked_for(tmp_path: Path) -> None:
    wave = torch.randn(3, 1, 40)
    export_onnx(Waves(), wave, tmp_path / "x.onnx")
    assert open_session(tmp_path / "x.onnx").get_inputs()[0].shape == ["batch", 1, 40]
    options = OnnxOptions(axes={"wave": {2: "time"}})
    export_onnx(Waves(), wave, tmp_path / "x.onnx", options=options)
    session = open_session(tmp_path / "x.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, "time"]
    assert session.get_outputs()[0].name == "output"
    with pytest.raises(ExportError, match="axes of the inputs wave, got 'sound'"):
        export_onnx(
            Waves(), wave, tmp_path / "x.onnx", options=OnnxOptions(axes={"sound": {2: "time"}})
        )


class Undecided(nn.Module):
    """Computes one thing in a second output while it is exported and another one afterwards."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + (1.0 if torch.compiler.is_exporting() else 0.0)


def test_every_output_is_compared(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differs from torch by 1 in output_1"):
        export_onnx(Undecided(), torch.zeros(4, 3), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_options_of_images_are_rejected_for_others(words: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--input-name for a network with one input"):
        export_onnx(words, sentences(2), tmp_path / "x.onnx", options=OnnxOptions(input_name="x"))
