r"""Sensitivity of the loss to a layer's output, estimated from gradients.

What all learners' ``gradient_scores`` share. A choice changes the outputs of a layer by ``d_p`` at
position ``p``, in that layer alone, the learner's own repair of it included. To second order, with
the empirical Fisher information in place of the Hessian, the loss of an image rises by
``(sum_p g_p^T d_p)^2 / 2``, ``g_p`` the gradient of the image's own loss there, and on average by

    1/2 E[(g^T d)^2]  =  1/2 tr(B C),     g = sum_p g_p,  B = E[g g^T],  C = E[d d^T],           (1)

if the change is taken to be the same at all positions of an image and independent of the gradient.
``B`` is the Fisher information of a shift of the layer's outputs, the output factor of K-FAC in its
"reduce" form (Eschenhagen et al. 2023, https://arxiv.org/abs/2311.00636). For a change ``D`` of the
weights ``C = D A D^T`` with the second moments ``A`` of the input patches, the input factor for
convolutions (Grosse & Martens 2016, https://arxiv.org/abs/1602.01407). Where the repair restores
the mean of the outputs, by an intercept or by batch-norm statistics, ``C`` and ``A`` are centred.
``B`` is never formed: with ``R^T R = B`` (:func:`curvature_root`) a score is half the energy of
``R d``.

NVIDIA Model-Optimizer's AutoQuantize computes ``sum_p sum_c g_pc^2 d_pc^2`` instead: the same
expansion with all outputs and positions independent of each other, and without the repair.

Where a layer's inputs have no moments, or its output no gradient, the second-order rise with the
diagonal empirical Fisher information of the weights is all there is (:func:`weight_fisher`):

    1/2 sum_i F_i (w_i - w'_i)^2,     F_i = E[g_i^2].                                            (2)

Scores are in nats, one scale for all kinds of decisions. They are too small where the network fits
the calibration images (gradients vanish there, curvature does not): compare them with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.stateless import _reparametrize_module

from amc_compress.learners.candidates.inference.batch_sizes import fitting
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import (
    Inputs,
    Split,
    count,
    device_of,
    hooked,
    mapped,
    moved,
    pieces,
)
from amc_compress.learners.tasks.task import Task

if TYPE_CHECKING:
    from amc_compress.learners.candidates.reconstruction import LayerReconstruction

Scores = dict[str, npt.NDArray[np.float64]]
"""Decision key -> rise of the loss by every choice, estimated in nats."""

_GRADIENT_BATCH = 32  # what is kept for the gradient takes memory

_FISHER_BATCH = 8


def falling(curve: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the smallest curve above a curve that never rises from a choice to the next.

    A quantizer of more bits can be worse by chance, a selection of more units another one.
    """
    highest: npt.NDArray[np.float64] = np.maximum.accumulate(curve[::-1])[::-1]
    return highest


def curvature_root(
    network: nn.Module,
    batches: Sequence[Split],
    layers: Collection[str],
    task: Task = CLASSIFICATION,
    report: Callable[[int], object] = lambda _: None,
) -> dict[str, Tensor]:
    """Returns ``R`` with ``R^T R = B`` of equation (1) for the outputs of some layers.

    Args:
        network: In ``eval`` mode, so that images do not depend on each other; not changed.
        batches: Calibration inputs and their targets.
        layers: Modules with weights, by name.
        task: Whose loss it is.
        report: Called with the number of samples done after each batch.

    Returns:
        Shape (images, outputs); without the layers that never ran as modules, or not on the way
        from the images to the loss. Calls of a layer used several times count like positions.
    """
    samples = sum(map(count, batches))
    found_rows: dict[str, list[Tensor]] = {}
    with task.differentiable(network):
        for inputs, targets in _smaller(batches, _GRADIENT_BATCH):
            found: dict[str, Tensor] = {}
            with _shifts(network, layers, count(inputs), found):
                _backward(network, inputs, targets, task)
            for name, gradients in found.items():
                found_rows.setdefault(name, []).append(gradients)
            report(count(inputs))
    return {name: torch.cat(parts) / samples**0.5 for name, parts in found_rows.items()}


def _backward(network: nn.Module, inputs: Inputs, targets: Any, task: Task) -> None:
    """Runs the network on samples and the gradient of the summed loss back to where it starts."""
    device = device_of(inputs)
    devices = [device] if device.type == "cuda" else []
    # A forward that draws numbers in eval mode must not draw those of the caller.
    with torch.enable_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        # No leaf, which networks that work in place could not take; no gradient of a weight.
        origin = torch.zeros((), device=device, requires_grad=True)
        shifted = mapped(lambda t: t + origin if t.is_floating_point() else t, inputs)
        targets = task.drawn(moved(targets, device))
        with _from_embeddings(network, origin):
            outputs = task.outputs(task.ask(network, shifted, targets))
        loss = task.summed_loss(outputs, targets)
        torch.autograd.grad(loss, origin, allow_unused=True)


@contextmanager
def _from_embeddings(network: nn.Module, origin: Tensor) -> Iterator[None]:
    """Lets the gradient start at what tables are read into: ids have none."""
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: output + origin, prepend=True)
        for module in network.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    ]
    with hooked(handles):
        yield


@contextmanager
def _shifts(
    network: nn.Module, layers: Collection[str], n_images: int, found: dict[str, Tensor]
) -> Iterator[None]:
    """Adds up the gradients by a shift of each layer's output, shape (images, outputs)."""

    def watch(name: str) -> Callable[..., None]:
        def add(layer: nn.Module, gradient: Tensor) -> None:
            shifts = _shift_gradients(layer, gradient, n_images)
            found[name] = found[name] + shifts if name in found else shifts

        def leave(layer: nn.Module, _inputs: object, outputs: object) -> None:
            output = main_output(layer, outputs)
            # On the tensor: it then gets the gradient by the output before any change in place.
            if output.requires_grad:
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: add(layer, gradient)
                )

        return leave

    modules = dict(network.named_modules())
    handles = [modules[name].register_forward_hook(watch(name)) for name in layers]
    with hooked(handles):
        yield


def main_output(layer: nn.Module, outputs: Any) -> Tensor:
    """Returns what of a layer's outputs the next layers read, samples first."""
    found: Tensor = outputs
    if isinstance(layer, nn.RNNBase):
        found = outputs[0] if isinstance(outputs[0], Tensor) else outputs[0].data
        if not layer.batch_first and found.dim() == 3:
            found = found.transpose(0, 1)
    elif isinstance(layer, nn.LSTMCell):
        found = outputs[0]
    return found


def output_rows(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Returns the outputs of a layer, or a gradient by them, as (samples, positions, outputs)."""
    if isinstance(layer, _ConvNd):
        return outputs.flatten(2).transpose(1, 2)
    return outputs.reshape(len(outputs), -1, outputs.shape[-1])


def _shift_gradients(layer: nn.Module, gradient: Tensor, n_images: int) -> Tensor:
    sums = output_rows(layer, gradient.detach().float()).sum(1)
    if len(sums) != n_images and len(sums) % n_images == 0:
        # Tokens or windows of an image that the network has moved into the batch.
        sums = sums.view(n_images, -1, sums.shape[1]).sum(1)
    return sums


def rise_from_covariance(root: Tensor, covariance: Tensor) -> float:
    """Returns equation (1) for the second moments of a change of outputs.

    Args:
        root: See :func:`curvature_root`.
        covariance: ``C``, shape (outputs, outputs).
    """
    root = root.to(covariance)
    return max(0.0, 0.5 * float(((root @ covariance) * root).sum()))


def rise_from_weights(
    root: Tensor, layer: LayerReconstruction, weight: Tensor, *, mean_restored: bool = True
) -> float:
    """Returns equation (1) for new weights of a layer.

    Outputs of different convolution groups count as independent.

    Args:
        root: See :func:`curvature_root`.
        layer: Original weights, and moments of the inputs.
        weight: New weights in the shape of the layer's own, zeros where there are none.
        mean_restored: Whether the repair restores the mean of every output, where it can.
    """
    lost = layer.matrix(weight) - layer.weight
    total = 0.0
    for group, part in enumerate(root.to(lost).chunk(layer.conv_groups, 1)):
        along = part @ lost[group]  # (images, columns): the gradient by a change of the inputs
        total += float(((along @ layer.gram[group]) * along).sum())
        if layer.mean is not None and not mean_restored:
            total += layer.rows * float((along @ layer.mean[group]).square().sum())
    return max(0.0, 0.5 * total / layer.rows)


def weight_fisher(
    network: nn.Module,
    batches: Sequence[Split],
    parameters: Collection[str],
    task: Task = CLASSIFICATION,
) -> dict[str, Tensor]:
    """Returns the diagonal empirical Fisher information ``F`` of equation (2).

    From gradients of small batches: of independent images whose gradients are 0 on average, the
    squared sum over a batch has the expectation of the sum of squares.

    Args:
        network: In ``eval`` mode; not changed.
        batches: Calibration inputs and their targets.
        parameters: By qualified name.
        task: Whose loss it is.

    Returns:
        By name, float64, the shape of the parameter.
    """
    if not parameters:
        return {}
    wanted = {name: network.get_parameter(name) for name in parameters}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in wanted.items()}
    fisher = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in leaves.items()}
    samples = sum(map(count, batches))
    with task.differentiable(network):
        for inputs, targets in _smaller(batches, _FISHER_BATCH):
            found = _weight_gradients(network, leaves, inputs, targets, task)
            for name, gradient in found.items():
                fisher[name] += gradient.double().square() / samples
    return fisher


def _smaller(batches: Sequence[Split], size: int) -> Iterator[Split]:
    for batch in batches:
        yield from pieces(batch, fitting(batch[0], size))


def _weight_gradients(
    network: nn.Module, leaves: Mapping[str, Tensor], inputs: Inputs, targets: Any, task: Task
) -> dict[str, Tensor]:
    """Returns the gradients of the summed loss; none of parameters that it does not depend on."""
    device = device_of(inputs)
    devices = [device] if device.type == "cuda" else []
    targets = task.drawn(moved(targets, device))
    with (
        torch.enable_grad(),
        torch.random.fork_rng(devices),
        _swapped(network, leaves),
    ):
        torch.manual_seed(0)
        outputs = task.outputs(task.ask(network, inputs, targets))
        loss = task.summed_loss(outputs, targets)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}


@contextmanager
def _swapped(network: nn.Module, leaves: Mapping[str, Tensor]) -> Iterator[None]:
    """Lets a network compute with other tensors in place of some parameters, in the block."""
    # As ``torch.func.functional_call``, around whatever way the task asks the network in.
    with _reparametrize_module(network, dict(leaves), tie_weights=True):
        yield
