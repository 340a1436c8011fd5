"""Factories of libraries and users: which names they have for the sizes of the data."""

from __future__ import annotations

import sys
import types

import pytest
from torch import nn

from amc_compress.models import make_model
from amc_compress.models.arguments import SYNONYMS, parse_arguments
from amc_env.errors import InputDataError


class Net(nn.Module):
    def __init__(self, classes: int, channels: int, width: float = 1.0) -> None:
        super().__init__()
        self.classes, self.channels, self.width = classes, channels, width


@pytest.fixture
def library(monkeypatch) -> types.ModuleType:
    module = types.ModuleType("some_nets")
    monkeypatch.setitem(sys.modules, "some_nets", module)
    return module


def made(**options) -> Net:
    model = make_model("some_nets:make", n_classes=7, in_channels=2, image_size=9, **options)
    assert isinstance(model, Net)
    return model


@pytest.mark.parametrize("classes", SYNONYMS["n_classes"])
@pytest.mark.parametrize("channels", SYNONYMS["in_channels"])
def test_a_factory_gets_the_sizes_under_its_own_names(library, classes, channels) -> None:
    scope = {"Net": Net}
    exec(f"def make({classes}=1000, {channels}=3): return Net({classes}, {channels})", scope)
    library.make = scope["make"]
    assert (made().classes, made().channels) == (7, 2)


@pytest.mark.parametrize("classes", ["num_classes", "n_classes", "num_labels"])
@pytest.mark.parametrize("channels", ["in_chans", "in_channels"])
def test_a_factory_of_keywords_gets_them_under_the_names_that_it_takes(
    library, classes, channels
) -> None:
    """As ``torchvision.models`` and ``timm`` write theirs."""
    calls = []

    def make(*, weights=None, progress=True, **kwargs):
        calls.append(kwargs)
        return inner(**kwargs)

    scope = {"Net": Net}
    exec(f"def inner({classes}=1000, {channels}=3): return Net({classes}, {channels})", scope)
    inner = scope["inner"]
    library.make = make
    assert (made().classes, made().channels) == (7, 2)


def test_a_factory_of_keywords_for_three_channels_alone_is_not_given_any(library) -> None:
    library.make = lambda weights=None, **kwargs: resnet(**kwargs)

    def resnet(num_classes=1000):
        return Net(num_classes, 3)

    model = make_model("some_nets:make", n_classes=7, in_channels=3)
    assert (model.classes, model.channels) == (7, 3)


def test_further_arguments_are_given_and_go_first(library) -> None:
    library.make = lambda num_classes=10, in_chans=3, width=1.0: Net(num_classes, in_chans, width)
    model = made(arguments=parse_arguments(["width=0.25", "num_classes=4"]))
    assert (model.classes, model.channels, model.width) == (4, 2, 0.25)
    with pytest.raises(InputDataError, match=r"with depth, .*--model-args key=value"):
        made(arguments={"depth": 3})


def test_what_a_factory_itself_raises_is_not_hidden(library) -> None:
    def make(**kwargs):
        raise TypeError("something else is unexpected")

    library.make = make
    with pytest.raises(TypeError, match="something else"):
        made()


def test_a_library_that_makes_networks_by_name_is_asked_by_name(monkeypatch) -> None:
    timm = types.ModuleType("timm")
    timm.is_model = lambda name: name == "tiny"
    timm.create_model = lambda model_name, pretrained=False, **kwargs: Net(
        kwargs["num_classes"], kwargs["in_chans"]
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    model = make_model("timm:tiny", n_classes=7, in_channels=1)
    assert (model.classes, model.channels) == (7, 1)
    model = make_model(
        "timm:create_model", n_classes=7, in_channels=1, arguments={"model_name": "tiny"}
    )
    assert (model.classes, model.channels) == (7, 1)
    with pytest.raises(InputDataError, match="has no 'tini'"):
        make_model("timm:tini")


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=1", 1), ("a=0.5", 0.5), ("a=[1, 2]", [1, 2]), ("a=x y", "x y"), ("a=true", True),
     ("a=None", None), ("a=b=c", "b=c"), ("a='1'", "1"), ("a=", "")],
)  # fmt: skip
def test_arguments_are_read_as_python_writes_them(text, value) -> None:
    assert parse_arguments([text]) == {"a": value}


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["1a=2"], ["a b=1"], ["a=1", "a=2"]])
def test_arguments_of_another_form_are_rejected(texts) -> None:
    with pytest.raises(ValueError, match="--model-args"):
        parse_arguments(texts)
