"""Feature matching: attention transfer from a teacher.

Attention transfer, Zagoruyko & Komodakis 2017 (arXiv:1612.03928), section 3.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amc_compress.learners.training.hooks import TrainingHook
from amc_env.errors import InputDataError
from amc_env.validation.checks import checked
from amc_env.validation.sentences import some

DEFAULT_WEIGHT = 1000.0
Resolution = tuple[int, int]

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample, nn.PixelShuffle,
)  # fmt: skip


def attention_map(activations: Tensor) -> Tensor:
    """Returns where a layer looks: ``Q / ||Q||_2`` with ``Q = vec(sum_c |A_c|^2)`` (section 3.1).

    Args:
        activations: Shape (N, C, H, W); C does not show in the result.

    Returns:
        Shape (N, H * W), float32, rows of length 1.
    """
    return F.normalize(activations.float().square().sum(1).flatten(1), dim=1)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images and positions of the squared difference of what is matched.

    Attention maps of images, shape (N, C, H, W), in which C may differ; of vectors, shape (N, D),
    the vectors themselves, each divided by its length.
    """
    if student.dim() == 4:
        return (attention_map(student) - attention_map(teacher)).square().mean()
    ours, theirs = F.normalize(student.float(), dim=1), F.normalize(teacher.float(), dim=1)
    return (ours - theirs).square().mean()


@checked
class FeatureMatching(TrainingHook):
    """Adds attention transfer to the loss of every step.

    ``weight / 2 sum_j mean (Q_S^j / ||Q_S^j|| - Q_T^j / ||Q_T^j||)^2`` over pairs of layers j, the
    mean over images and positions: Zagoruyko & Komodakis 2017, eq. 2, with beta = ``weight`` /
    (positions times images), which is their choice (section 4), and the distance squared, as in
    their code.

    A pair is the student's layer and the teacher's layer of the same name; where the teacher has
    none of that name and resolution, its last layer at this resolution.

    Args:
        layers: Modules of the student. If ``None``: at each resolution that both networks have, the
            last module to answer with images, that is the end of each stage.
        weight: Of the term.

    Raises:
        ValueError: If the weight is not positive, or no layer is named.
    """

    name = "feature-matching"

    def __init__(self, layers: Sequence[str] | None = None, weight: float = DEFAULT_WEIGHT) -> None:
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"Expected a weight above 0, got {weight}.")
        if layers is not None and (isinstance(layers, str) or not layers):
            raise ValueError(f"Expected names of layers, or None to choose them, got {layers!r}.")
        self.layers = None if layers is None else tuple(layers)
        self.weight = weight
        self._student = _Recorder()
        self._teacher = _Recorder()

    def identity(self) -> Mapping[str, Any]:
        """Returns the layers and the weight."""
        layers = None if self.layers is None else list(self.layers)
        return {"layers": layers, "weight": self.weight}

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        """Listens to both networks.

        Raises:
            InputDataError: If there is no teacher, or the student has no layer of a given name.
        """
        if teacher is None:
            raise InputDataError(
                "Feature matching needs a network to learn from: train with a teacher."
            )
        modules = dict(model.named_modules())
        for name in self.layers or ():
            if not name or name not in modules:
                raise InputDataError(
                    f"The student has no layer {name!r} to match features of; it has "
                    f"{some((key for key in modules if key), 12)}."
                )
        names = self.layers or ()
        self._student.attach(model, names)
        self._teacher.attach(teacher, names)

    def before_step(self, step: int) -> None:
        """Listens from here on; validation between the steps goes unheard."""
        self._student.open()
        self._teacher.open()

    def loss(self) -> Tensor | None:
        """Returns the term for what both networks have just seen, and forgets it."""
        pairs = self._named_pairs() if self.layers is not None else self._stage_ends()
        total = sum((feature_distance(s, t) for s, t in pairs[1:]), feature_distance(*pairs[0]))
        self._student.open()
        self._teacher.open()
        return 0.5 * self.weight * total

    def after_step(self, step: int) -> None:
        """Stops listening until the next step."""
        self._student.close()
        self._teacher.close()

    def finish(self) -> None:
        """Stops listening."""
        self._student.detach()
        self._teacher.detach()

    def _stage_ends(self) -> list[tuple[Tensor, Tensor]]:
        ours, theirs = self._student.last, self._teacher.last
        # A single position always has the attention map (1).
        common = [r for r in ours if r in theirs and math.prod(r) > 1]
        if not common:
            raise InputDataError(
                f"Expected a teacher with a resolution of the student's "
                f"({some(map(_text, ours), 12)}), got one with "
                f"{some(map(_text, theirs), 12)}: choose another teacher, or name "
                f"layers that both have."
            )
        return [(ours[r], theirs[r]) for r in common]

    def _named_pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [self._pair(name) for name in self.layers or ()]

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        ours, theirs = self._student.named.get(name), self._teacher.named.get(name)
        if name in self._student.rejected:
            raise InputDataError(
                f"Expected the layer {name!r} to answer with images (N, C, H, W), got channels on "
                f"another axis than 1: name a convolution or a norm behind one."
            )
        if ours is None or ours.dim() not in (2, 4):
            got = "no tensor" if ours is None else f"shape {list(ours.shape)}"
            raise InputDataError(
                f"Expected the layer {name!r} to answer with images (N, C, H, W) or vectors "
                f"(N, D), got {got}: name another one."
            )
        if ours.dim() == 2:
            if theirs is None or theirs.shape != ours.shape:
                got = "none" if theirs is None else f"shape {list(theirs.shape)}"
                raise InputDataError(
                    f"The layer {name!r} answers with vectors of shape {list(ours.shape)}, that "
                    f"of the teacher with {got}: vectors are matched only where widths agree, so "
                    f"name a layer with images."
                )
            return ours, theirs
        if theirs is None or theirs.dim() != 4 or theirs.shape[2:] != ours.shape[2:]:
            resolution = _resolution(ours)
            theirs = self._teacher.last.get(resolution)
            if theirs is None:
                raise InputDataError(
                    f"The teacher has nothing of the resolution {_text(resolution)} of the layer "
                    f"{name!r}, only {some(map(_text, self._teacher.last), 12)}: name "
                    f"another layer or choose another teacher."
                )
        return ours, theirs


class _Recorder:
    """Keeps what some modules of a network answered last.

    Attributes:
        named: By name, for the modules asked for.
        last: By resolution, what the last module with images of it answered.
        rejected: Of the modules asked for, those that answered with channels elsewhere.
    """

    def __init__(self) -> None:
        self.named: dict[str, Tensor] = {}
        self.last: dict[Resolution, Tensor] = {}
        self.rejected: set[str] = set()
        self._first: set[tuple[int, ...]] = set()  # shapes (C, H, W) answered by convolutions
        self._grids: set[tuple[int, ...]] = set()  # their (H, W)
        self._others: set[tuple[int, ...]] = set()  # shapes answered by other layers with weights
        self._handles: list[RemovableHandle] = []
        self._listening = False

    def attach(self, network: nn.Module, names: Sequence[str]) -> None:
        """Hooks every module, as which one is the last at its resolution shows only in a run."""
        for name, module in network.named_modules(remove_duplicate=False):
            if name:  # the network's own answer is not a feature
                key = name if name in names else None

                def note(module: nn.Module, _: Any, output: Any, key: str | None = key) -> None:
                    self._note(key, module, output)

                self._handles.append(module.register_forward_hook(note))

    def _note(self, name: str | None, module: nn.Module, output: Any) -> None:
        if not self._listening or not isinstance(output, Tensor):
            return
        if output.dim() == 4 and not self._has_channels_first(module, output):
            if name is not None:
                self.rejected.add(name)
            return
        # The tensor itself, not its map: an activation that works in place comes after this.
        if name is not None:
            self.named[name] = output
        if output.dim() == 4:
            self.last[_resolution(output)] = output

    def _has_channels_first(self, module: nn.Module, output: Tensor) -> bool:
        """Whether an output of four axes is (N, C, H, W) and not (N, H, W, C).

        Layers with weights decide by their kind; what else a network computes, by what these have
        answered so far: the same shape, or the same resolution.
        """
        shape = tuple(output.shape[1:])
        weights = list(module.parameters(recurse=False))
        if isinstance(module, _CHANNELS_FIRST) or any(w.dim() == 4 for w in weights):
            self._first.add(shape)
            self._grids.add(shape[1:])
            return True
        normed = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
        if normed or isinstance(module, nn.Linear):
            self._others.add(shape)
            return False
        return shape in self._first or (shape[1:] in self._grids and shape not in self._others)

    def open(self) -> None:
        self.close()
        self._listening = True

    def close(self) -> None:
        """Drops the activations, which would keep the memory of the step."""
        self.named, self.last, self._listening = {}, {}, False
        self.rejected, self._first, self._grids, self._others = set(), set(), set(), set()

    def detach(self) -> None:
        self.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _resolution(images: Tensor) -> Resolution:
    return images.shape[2], images.shape[3]


def _text(resolution: Resolution) -> str:
    return "{} x {}".format(*resolution)
